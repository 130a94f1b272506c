/*
 * choices: models, machines and random placements for the tests of what a step takes: the model
 * engine, the lower bound, the layer level and the search. Nothing here computes or touches a file.
 */
#ifndef SPILLWAY_TESTS_SHARED_CHOICES_H
#define SPILLWAY_TESTS_SHARED_CHOICES_H

#include "offload/place.h"
#include "tests/shared/tiny.h"

/* A model by its name (model/config.h), or one of
 *     qwen-1.5b      Qwen2.5-1.5B, whose head is tied
 *     tiny-llama     3 layers of 64 channels, a head of its own, no positions
 *     tiny-tied      the same with a tied head
 * in chunks and tiles of that many parameters; 0: as the trainer cuts them. */
void choices_model(struct tiny_model *model, const char *name, uint64_t chunk, uint64_t tile);

/* A known box with its VRAM and RAM, or "cpu": profile_init's of 8 cores. */
void choices_machine(struct profile *profile, const char *name);

/* A spec in bf16 with a drive, clipping, and the whole machine as the budget (on a CPU device
 * without RAM known: 64 GiB), less 1 GiB of RAM for the program. Model and profile stay borrowed.
 */
void choices_spec(struct place_spec *spec, const struct tiny_model *model,
                  const struct profile *profile, uint32_t seq, uint32_t batch, uint32_t accum);

/* A choice that fits all budgets, out of all that the search could make: knobs in random order,
 * each raised towards nothing, everything or something between as far as memory goes; planes in
 * their order. A tenth of the draws stays close to the least that works. place: place_init'ed, and
 * what takes the least fits. */
void choices_random(struct place *place, uint64_t seed, struct place_choice *choice);

/* Where a spending within random limits leads: what the search itself could return. */
void choices_spend(struct place *place, uint64_t seed, struct place_choice *choice);

/* All knobs in one line, for failure messages; returns text. */
#define CHOICES_TEXT_MAX 512
const char *choices_text(const struct place_choice *choice, char *text);

/* A machine, a model and a batch, with budgets of RAM from too little to plenty. */
struct choices_scene {
    const char *model, *machine;
    uint32_t seq, batch, accum;
    double ram_gib[2]; /* the ends of a ladder */
    double vram_gib;   /* 0: the machine's */
    enum precision precision;
    bool clip;
};
#define CHOICES_SCENES 8
extern const struct choices_scene choices_scenes[CHOICES_SCENES];

/* A scene with what it consists of. */
struct choices_example {
    const struct choices_scene *scene;
    struct tiny_model model;
    struct profile profile;
    struct place_spec spec;
};
void choices_open(struct choices_example *example, const struct choices_scene *scene);
void choices_close(struct choices_example *example);
/* The budget at this part of the way between the ends of the ladder, in the logarithm. */
void choices_set_ram(struct choices_example *example, double part);

/* predicted_s of the placement that is chosen for the spec, and the choice where that is not NULL.
 */
double choices_search(const struct place_spec *spec, struct place_choice *choice);

/* Predictions for machines each of which is better than those before; fails when one is slower by
 * more than half a percent. what: made it better. best_s: INFINITY at first. */
struct choices_ladder {
    const char *what;
    double best_s;
};
void choices_climb(struct choices_ladder *ladder, const struct choices_example *example);

#endif
