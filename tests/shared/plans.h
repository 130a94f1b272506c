/*
 * plans: plans for tests of them, and an oracle of their order that is brute force.
 */
#ifndef SPILLWAY_TESTS_SHARED_PLANS_H
#define SPILLWAY_TESTS_SHARED_PLANS_H

#include "offload/plan.h"
#include "tests/shared/tiny.h"

/* A placement and its plan of a step with everything in it. */
struct plans_example {
    struct tiny_model model;
    struct place place;
    struct plan_memory memory;
    struct plan plan;
};

/* e->model is the caller's; the spec's model is set. */
void plans_open(struct plans_example *e, const struct place_spec *change,
                const struct plan_request *request);
void plans_close(struct plans_example *e);

struct plans_use {
    uint32_t op;
    bool write;
};

struct plans_oracle {
    const struct plan *plan;
    uint32_t *first;        /* [cell]: into uses; cell_count + 1 entries */
    struct plans_use *uses; /* by cell, in order of ops; an op once for each cell */
    uint64_t *before;       /* [op][words]: bit p: op p is surely done before op starts */
    uint32_t words;
};

void plans_oracle_open(struct plans_oracle *oracle, const struct plan *plan);
void plans_oracle_close(struct plans_oracle *oracle);
/* Whether every two uses of a cell of which one is a write have an order. */
bool plans_oracle_ordered(const struct plans_oracle *oracle);

#endif
