/*
 * machine: the machine that a forecast is for, composed of parts: a GPU, a processor with its
 * board, RAM and drives, each by a known name (tools/machines/, which is inside the program) or a
 * JSON file. Owns what follows from putting parts together: how fast RAM runs with so many DIMMs,
 * which link a slot gives a card, what the processor reaches with that RAM.
 *
 * Names are compared without regard to case, '-', '_' and spaces: "RTX 3060" is rtx3060. What
 * holds a '/' or ends in ".json" is a file. Pure but for reading such files. Called by plan and
 * sweep.
 */
#ifndef SPILLWAY_TOOLS_MACHINE_H
#define SPILLWAY_TOOLS_MACHINE_H

#include "core/err.h"
#include "offload/profile.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* NULL and 0: as the machine has it. */
struct machine_request {
    const char *machine; /* a known box, or the file of a box or of a whole machine */
    const char *gpu;     /* a part; "none": the processor computes */
    const char *cpu;     /* with its board: RAM keeps its size and runs as this board runs it */
    const char *ram;     /* "192G", or "192G@3600" with the transfers per microsecond */
    const char *ssd;
    uint64_t gpus, ssds; /* how many; each GPU has its link, drives are striped */
};

/* *profile holds the local machine on entry and the machine asked for on return; on error it is as
 * it was. `measured` becomes false when anything was replaced.
 *
 * What is known of the board (slots, DIMMs) comes from the cpu part, from a "board" section of the
 * machine's file, or from the known part that the processor's name speaks of ("AMD Ryzen 9 7950X
 * 16-Core Processor"). Where none is known, cards get the link that they can use themselves, and
 * RAM of another size runs at the rate that it has now.
 *
 * ERR_USAGE for what the command line says wrong, ERR_INPUT and ERR_SYSTEM for files. */
int machine_compose(struct profile *profile, const struct machine_request *request,
                    struct err *err);

/* The known part that a card is, by the name that its driver gives ("NVIDIA GeForce RTX 3060") and
 * its memory: *device gets its figures, from data sheets and others' measurements, under that name
 * and with that memory. Returns the part's name, or NULL where none is known: a Ti, a laptop's card
 * or one with other memory is another card. */
const char *machine_card(const char *name, uint64_t vram_bytes, struct profile_device *device);

/* One line: "2 x RTX 3060 12GB (12 GiB, 12.8 GB/s), AMD Ryzen ...". Cut when size is
 * small; returns text. */
#define MACHINE_TEXT_MAX 512
const char *machine_describe(const struct profile *profile, char *text, size_t size);

/* All known boxes and parts, a line each, with what they are. */
void machine_list(FILE *file);

#endif
