/*
 * profile_file: machine profiles as JSON files (docs/machine-profiles.md has every field). Owns the
 * format: which fields there are, which must be there, and what is a sane value.
 *
 * A file is one object: "spillway_profile": 1, "name", "measured", "date", and the sections
 * "device", "cpu", "ram" and "ssd", whose fields are the members of the structs in profile.h. A
 * section is whole or absent. "card", which few files have, is a CUDA device of the machine beside
 * the device that the profile predicts with, with a device's fields. "board" is a part's, passed
 * over here and read by tools/machine.c.
 *
 * Refuses, in a sentence that names the file and `section.field`: missing and unknown fields, wrong
 * kinds, values out of range, and figures that contradict each other. `spillway bench` writes them,
 * train, plan, sweep and tools/machine.c read them.
 */
#ifndef SPILLWAY_OFFLOAD_PROFILE_FILE_H
#define SPILLWAY_OFFLOAD_PROFILE_FILE_H

#include "core/err.h"
#include "offload/profile.h"

struct json_value;

/* A complete machine: all four sections. On error *profile is as it was. 0, ERR_INPUT, or
 * ERR_SYSTEM when the file cannot be read. */
int profile_load(struct profile *profile, const char *path, struct err *err);

/* The same from text that was read already; `what` names it in sentences. */
int profile_read(struct profile *profile, const struct json_value *root, const char *what,
                 struct err *err);

/* Replaces the sections that root has, at least one; name and measured stay as they are. What a
 * section says is checked; whether it goes with the others is profile_check's. On error *profile is
 * as it was. */
int profile_merge(struct profile *profile, const struct json_value *root, const char *what,
                  struct err *err);

/* Writes all sections so that profile_load gives the same struct back, doubles bit for bit; dated
 * when measured. Refuses a profile that profile_check refuses. */
int profile_save(const struct profile *profile, const char *path, struct err *err);

/* Every range and every relation between fields, for a profile however it came about. */
int profile_check(const struct profile *profile, const char *what, struct err *err);

#endif
