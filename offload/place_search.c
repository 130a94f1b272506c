#include "offload/place_search.h"

#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "offload/bound.h"
#include "offload/coarse.h"
#include "offload/wear.h"

#include <math.h>
#include <string.h>

/* Of the time that the drive's traffic takes: so little that only ties are decided by it. */
#define TRAFFIC_WEIGHT 1e-4
#define BETTER         1e-6
/* A step that is longer by no more than this is as fast: predictions are not that good. */
#define AS_FAST 1.02
/* Spendings drawn over all limits, before the descent, and how many of the best are descended from.
 * One start alone ended in valleys: freeing the device for activations in RAM needs two limits
 * moved at once (tests/offload/test_search.c). */
#define SAMPLES  64
#define DESCENTS 3
/* How much is streamed is tried last, in the best that was found and in what became of it then: a
 * line of so many points each, with halving steps around the best of them. */
#define STREAMED_POINTS 4
#define STREAMED_HALVES 3
#define STREAMED_LINES  2
#define STREAMED_MOST   (STREAMED_POINTS + 2 * STREAMED_HALVES)
/* And with state on the device, which is tried when it is known what is best without. */
#define DEVICE_DESCENTS 1
#define SEARCH_SEED     1

/* A choice that writes too much is worse than any step that could be waited for (seconds), and the
 * worse the more it writes: so a search that has found nothing better goes towards writing less. */
#define TOO_MUCH 1e12
/* How often a search is repeated with a lower limit, where the winner of the last one keeps it at
 * layer level and not at chunk level. */
#define WRITE_ROUNDS_MAX 4

struct seen {
    struct place_limits limits;
    struct place_choice choice;
    double score;
    bool descended;
};

struct search {
    struct place *place;
    struct coarse coarse;
    struct seen seen[PLACE_SEARCH_EVALUATIONS_MAX];
    uint32_t seen_count, seen_max;
    struct place_choice best;
    double best_score, best_s, best_per_day;
    double most_per_day; /* bytes that may be written */
    bool with_device;    /* whether limits of state on the device are moved, too */
    /* Where the descent that goes on is. */
    struct place_limits limits;
    struct place_choice at;
    double score;
};

/* The limits that a search moves, in the order of what they usually bring. */
static const enum place_knob moved[] = {
    KNOB_INNER_DEVICE, KNOB_HI,       KNOB_INNER_RAM,      KNOB_GRADIENTS,     KNOB_TILES,
    KNOB_X_DEVICE,     KNOB_PREFETCH, KNOB_GRADIENT_SLOTS, KNOB_GRADIENT_RING, KNOB_STASH,
    KNOB_X_RAM,        KNOB_LO,       KNOB_INNER_NVME,     KNOB_BLOCK_SLOTS,   KNOB_DEVICE,
};

static double simulate(struct search *search, const struct place_choice *choice, double *traffic_s,
                       struct wear *wear)
{
    const struct profile_ssd *ssd = &search->place->spec.profile->ssd;
    struct place coarse;
    struct sched_result result;
    coarse_place(&search->coarse, search->place, choice, &coarse);
    double seconds = coarse_step(&coarse, &result, NULL);
    *traffic_s = ((double)result.bytes[LANE_SSD_READ] + (double)result.bytes[LANE_SSD_WRITE]) /
                 ssd->read_bytes_per_s;
    wear_of(wear, &coarse, result.bytes[LANE_SSD_WRITE], seconds);
    place_deinit(&coarse);
    return seconds;
}

/* A choice's score, simulated unless it was before. */
static double score_of(struct search *search, const struct place_limits *limits,
                       const struct place_choice *choice)
{
    double traffic_s;
    struct wear wear;
    for (uint32_t i = 0; i < search->seen_count; i++)
        if (memcmp(&search->seen[i].choice, choice, sizeof(*choice)) == 0)
            return search->seen[i].score;
    if (search->seen_count == search->seen_max)
        return INFINITY;
    double seconds = simulate(search, choice, &traffic_s, &wear);
    double score = seconds + TRAFFIC_WEIGHT * traffic_s;
    if (wear.bytes_per_day > search->most_per_day)
        score = TOO_MUCH * wear.bytes_per_day / search->most_per_day;
    search->seen[search->seen_count++] = (struct seen){*limits, *choice, score, false};
    if (score < search->best_score) {
        search->best_score = score;
        search->best_s = seconds;
        search->best_per_day = wear.bytes_per_day;
        search->best = *choice;
    }
    return score;
}

/* Whether RAM and device hold all state and gradients, as they must where there is no drive. */
static bool holds_all(const struct place *place, const struct place_choice *choice)
{
    uint32_t rest = place->spec.layout->chunk_count - choice->knob[KNOB_DEVICE];
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        if (choice->knob[k] < rest)
            return false;
    return choice->knob[KNOB_GRADIENTS] >= MIN(place_knob_max(place, KNOB_GRADIENTS), rest) &&
           choice->knob[KNOB_STASH] >= place_knob_max(place, KNOB_STASH);
}

/* Moves to a choice when it is better than where we are; whether it was. */
static bool try_choice(struct search *search, const struct place_limits *limits,
                       const struct place_choice *choice)
{
    /* A drive that is too small for it is no choice, where another takes less of it. */
    place_measure(search->place, choice);
    if (search->place->nvme_bytes > search->place->spec.nvme_budget)
        return false;
    if (!search->place->spec.nvme && !holds_all(search->place, choice))
        return false;
    double score = score_of(search, limits, choice);
    if (score >= search->score * (1 - BETTER))
        return false;
    search->score = score;
    search->limits = *limits;
    search->at = *choice;
    return true;
}

/* Where a spending within these limits leads. */
static void try_limits(struct search *search, const struct place_limits *limits)
{
    struct place_choice choice;
    place_spend(search->place, limits, &choice);
    try_choice(search, limits, &choice);
}

/* One limit up and down by `step`; whether that was better. */
static bool move_knob(struct search *search, enum place_knob knob, uint32_t step)
{
    uint32_t most = place_knob_max(search->place, knob);
    double before = search->score;
    struct place_limits start = search->limits;
    /* Beyond what a spending has reached, a limit says nothing: steps go from where it ended. */
    uint32_t at = MIN(MIN(start.most[knob], most), search->at.knob[knob]);
    uint32_t to[2] = {at > step ? at - step : 0, most - at > step ? at + step : most};
    for (int i = 0; i < 2; i++) {
        struct place_limits limits = start;
        limits.most[knob] = to[i];
        try_limits(search, &limits);
    }
    return search->score < before;
}

static bool move_rest(struct search *search, uint32_t step)
{
    double before = search->score;
    struct place_limits limits = search->limits;
    limits.inner_last = !limits.inner_last;
    try_limits(search, &limits);
    limits = search->limits;
    limits.block_slots_first = limits.block_slots_first ? 0 : step;
    try_limits(search, &limits);
    if (search->with_device) {
        limits = search->limits;
        limits.device_last = !limits.device_last;
        try_limits(search, &limits);
    }
    return search->score < before;
}

static uint32_t step_of(const struct place *place, enum place_knob knob, uint32_t parts)
{
    return MAX(1, place_knob_max(place, knob) / parts);
}

static void descend(struct search *search)
{
    static const uint32_t parts[] = {2, 4, 8, 16, 32, 64};
    for (size_t p = 0; p < ARRAY_COUNT(parts); p++) {
        bool better = true;
        for (uint32_t round = 0; better && round < 4; round++) {
            better = false;
            for (size_t k = 0; k < ARRAY_COUNT(moved); k++)
                if ((moved[k] != KNOB_DEVICE || search->with_device) &&
                    place_knob_max(search->place, moved[k]) >= parts[p] / 2)
                    better |=
                        move_knob(search, moved[k], step_of(search->place, moved[k], parts[p]));
            better |= move_rest(search, step_of(search->place, KNOB_BLOCK_SLOTS, parts[p]));
        }
    }
}

/* Ways to begin that lie far apart. */
static void try_starts(struct search *search, const struct place_limits *limits)
{
    struct place_limits start = *limits;
    start.inner_last = false;
    try_limits(search, &start);
    start.inner_last = true;
    try_limits(search, &start);
    start.most[KNOB_INNER_DEVICE] = start.most[KNOB_INNER_RAM] = 0;
    try_limits(search, &start);
    start.most[KNOB_GRADIENTS] = 0;
    try_limits(search, &start);
    /* RAM for activations rather than for state, and the drive for what is left of them. */
    start = *limits;
    start.inner_last = false;
    start.most[KNOB_HI] = 0;
    try_limits(search, &start);
    start.most[KNOB_INNER_NVME] = place_knob_max(search->place, KNOB_INNER_NVME);
    try_limits(search, &start);
    start.inner_last = true;
    try_limits(search, &start);
    start.most[KNOB_HI] = place_knob_max(search->place, KNOB_HI);
    try_limits(search, &start);
    /* RAM for state alone, all activations to the drive, as far ahead as it goes. */
    start.most[KNOB_INNER_DEVICE] = start.most[KNOB_INNER_RAM] = 0;
    start.most[KNOB_X_DEVICE] = start.most[KNOB_X_RAM] = 0;
    start.most[KNOB_PREFETCH] = place_knob_max(search->place, KNOB_PREFETCH);
    try_limits(search, &start);
}

/* A limit is nothing, everything, or one of the quarters between. */
static void try_sample(struct search *search, const struct place_limits *limits, uint32_t sample)
{
    struct place_limits start = *limits;
    uint64_t draw = (uint64_t)sample * 64;
    for (size_t k = 0; k < ARRAY_COUNT(moved) && moved[k] != KNOB_DEVICE; k++) {
        uint64_t quarters = rng_below(SEARCH_SEED, RNG_STREAM_SAMPLE, draw++, 7);
        uint32_t most = place_knob_max(search->place, moved[k]);
        if (quarters <= 4)
            start.most[moved[k]] = (uint32_t)(most * quarters / 4);
    }
    start.inner_last = rng_below(SEARCH_SEED, RNG_STREAM_SAMPLE, draw++, 2);
    if (rng_below(SEARCH_SEED, RNG_STREAM_SAMPLE, draw++, 2))
        start.block_slots_first = place_knob_max(search->place, KNOB_BLOCK_SLOTS) / 2;
    try_limits(search, &start);
}

/* State on the device, instead of what else would be there: some of it or all, in a spending that
 * the descents ended in and in the one that begins the search. */
static void try_device(struct search *search, const struct place_limits *limits)
{
    uint32_t most = place_knob_max(search->place, KNOB_DEVICE);
    struct place_limits base[2] = {search->limits, *limits};
    for (int b = 0; b < 2; b++) {
        base[b].most[KNOB_DEVICE] = most;
        base[b].device_last = true;
        try_limits(search, &base[b]);
        base[b].device_last = false;
        for (uint32_t part = 1; part <= 4; part *= 2) {
            base[b].most[KNOB_DEVICE] = MAX(1, most / part);
            try_limits(search, &base[b]);
        }
    }
}

/* The best that was seen and not descended from yet; unlike: and has moments in RAM where that one
 * has none, or the other way round. */
static bool take_start(struct search *search, const struct place_choice *unlike)
{
    struct seen *best = NULL;
    for (uint32_t i = 0; i < search->seen_count; i++) {
        const struct place_choice *choice = &search->seen[i].choice;
        bool alike = unlike && (choice->knob[KNOB_V] > 0) == (unlike->knob[KNOB_V] > 0);
        if (!search->seen[i].descended && !alike && (!best || search->seen[i].score < best->score))
            best = &search->seen[i];
    }
    if (!best)
        return false;
    best->descended = true;
    search->limits = best->limits;
    search->at = best->choice;
    search->score = best->score;
    return true;
}

/* ---- From one knob to another ---------------------------------------------------------------- */

/* Lowers a knob by `step`; a plane only when those after it are not there. */
static bool lower(struct place_choice *choice, enum place_knob knob, uint32_t step)
{
    bool plane = knob >= KNOB_HI && knob < KNOB_V;
    if (choice->knob[knob] == 0 || (plane && choice->knob[knob + 1] > 0))
        return false;
    choice->knob[knob] -= MIN(step, choice->knob[knob]);
    return true;
}

/* What `from` gives up goes to `to`, as far as that wants it, and what is then left to the others.
 */
static bool try_trade(struct search *search, enum place_knob from, enum place_knob to,
                      uint32_t parts)
{
    struct place *place = search->place;
    struct place_choice choice = search->at;
    uint32_t before = choice.knob[to];
    if (from == KNOB_DEVICE && place->spec.resident_planes == PLACE_RESIDENT_DEVICE)
        return false;
    if (!lower(&choice, from, step_of(place, from, parts)))
        return false;
    place_grow(place, &choice, to, UINT32_MAX);
    if (choice.knob[to] == before)
        return false;
    /* Of the device's memory, state takes whatever there is: what it need not give up it keeps. */
    if (from == KNOB_DEVICE)
        place_grow(place, &choice, from, UINT32_MAX);
    for (size_t k = 0; k < ARRAY_COUNT(moved); k++)
        if (moved[k] != from && moved[k] != KNOB_INNER_NVME)
            place_grow(place, &choice, moved[k], UINT32_MAX);
    place_grow(place, &choice, KNOB_M, UINT32_MAX);
    place_grow(place, &choice, KNOB_V, UINT32_MAX);
    place_grow(place, &choice, from, UINT32_MAX);
    return try_choice(search, &search->limits, &choice);
}

/* Spendings go through the knobs in one order. From the best of them on, the choice itself is
 * moved: a part of one knob for a part of another. */
static void trade(struct search *search)
{
    static const enum place_knob last[] = {KNOB_M, KNOB_V};
    for (uint32_t parts = 4; parts <= 64; parts *= 4)
        for (size_t f = 0; f < ARRAY_COUNT(moved) + ARRAY_COUNT(last); f++)
            for (size_t t = 0; t < ARRAY_COUNT(moved); t++) {
                enum place_knob from =
                    f < ARRAY_COUNT(moved) ? moved[f] : last[f - ARRAY_COUNT(moved)];
                if (from != moved[t])
                    try_trade(search, from, moved[t], parts);
            }
}

/* ---- Who updates what is in RAM ---------------------------------------------------------------
 */

/* Room on the device for what is on its way, of what is there by choice. */
static bool make_room(struct place *place, struct place_choice *choice)
{
    static const enum place_knob from[] = {KNOB_BLOCK_SLOTS, KNOB_INNER_DEVICE, KNOB_DEVICE,
                                           KNOB_X_DEVICE};
    for (size_t k = 0; k < ARRAY_COUNT(from); k++)
        while (!place_measure(place, choice) && lower(choice, from[k], step_of(place, from[k], 64)))
            ;
    if (!place_measure(place, choice))
        return false;
    /* What has left the device is in RAM now, where that has room. */
    place_grow(place, choice, KNOB_GRADIENTS, UINT32_MAX);
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        place_grow(place, choice, k, UINT32_MAX);
    return true;
}

/* `count` of the chunks that can be are streamed, all else as in the best without. */
static void try_streamed(struct search *search, const struct place_choice *without, uint32_t count)
{
    struct place_choice choice = *without;
    choice.knob[KNOB_STREAMED] = count;
    if (make_room(search->place, &choice))
        try_choice(search, &search->limits, &choice);
}

static void stream(struct search *search)
{
    struct place_choice without = search->best;
    uint32_t most = place_streamable(search->place, &without);
    most = MIN(most, place_knob_max(search->place, KNOB_STREAMED));
    search->seen_max += STREAMED_MOST;
    ASSERT(search->seen_max <= ARRAY_COUNT(search->seen));
    for (uint32_t i = 1; i <= STREAMED_POINTS && most; i++)
        try_streamed(search, &without, (uint32_t)((uint64_t)most * i / STREAMED_POINTS));
    for (uint32_t i = 0, step = most / STREAMED_POINTS / 2; i < STREAMED_HALVES && step;
         i++, step /= 2) {
        uint32_t at = search->best.knob[KNOB_STREAMED];
        if (at > step)
            try_streamed(search, &without, at - step);
        try_streamed(search, &without, MIN(at + step, most));
    }
}

/* ---- What is not worth its memory --------------------------------------------------------------
 */

/* Whether more memory could only hold copies: of weights, and of what is on its way. */
static bool holds_everything(const struct place *place, const struct place_choice *choice)
{
    return !place->separate_device && holds_all(place, choice) &&
           choice->knob[KNOB_X_DEVICE] == place_knob_max(place, KNOB_X_DEVICE) &&
           choice->knob[KNOB_INNER_DEVICE] == place_knob_max(place, KNOB_INNER_DEVICE);
}

/* Moves to a choice that takes less RAM, is as fast and moves no more; whether there was one. */
static bool try_less(struct search *search, const struct place_choice *choice, double most_s,
                     double most_traffic_s)
{
    struct place *place = search->place;
    double traffic_s;
    struct wear wear;
    place_measure(place, &search->best);
    uint64_t before = place->ram_bytes;
    place_measure(place, choice);
    if (place->ram_bytes >= before)
        return false;
    double seconds = simulate(search, choice, &traffic_s, &wear);
    if (seconds > most_s || traffic_s > most_traffic_s || wear.bytes_per_day > search->most_per_day)
        return false;
    search->best = *choice;
    search->best_s = seconds;
    search->best_per_day = wear.bytes_per_day;
    return true;
}

static void give_back(struct search *search)
{
    static const enum place_knob copies[] = {KNOB_BLOCK_SLOTS,    KNOB_TILES,
                                             KNOB_GRADIENT_SLOTS, KNOB_PREFETCH,
                                             KNOB_GRADIENT_RING,  KNOB_STATE_STAGES};
    double traffic_s;
    struct wear wear;
    if (!search->place->spec.thrifty || !holds_everything(search->place, &search->best))
        return;
    double most_s = simulate(search, &search->best, &traffic_s, &wear) * AS_FAST;
    for (size_t k = 0; k < ARRAY_COUNT(copies); k++)
        for (uint32_t part = 1; part <= 4; part *= 2) {
            struct place_choice choice = search->best;
            if (copies[k] == KNOB_PREFETCH && search->place->spec.prefetch)
                continue; /* as asked */
            choice.knob[copies[k]] -= choice.knob[copies[k]] / part;
            if (try_less(search, &choice, most_s, traffic_s))
                break;
        }
}

/* From so many of what was seen since the last descents, the best first. The second is of another
 * kind than the first: three of one kind left 1.5 % to what RAM for state and the drive for
 * activations reaches, or the other way round (tests/offload/test_search.c). */
static void descend_from_best(struct search *search, uint32_t count)
{
    uint32_t first_count = search->seen_count;
    struct place_choice first = {{0}};
    for (uint32_t i = 0; i < count; i++) {
        if (!(i == 1 && take_start(search, &first)) && !take_start(search, NULL))
            break;
        first = i ? first : search->at;
        for (uint32_t s = first_count; s < search->seen_count; s++)
            search->seen[s].descended = true; /* the next start is not of this descent */
        descend(search);
    }
    for (uint32_t s = 0; s < search->seen_count; s++)
        search->seen[s].descended = true;
}

/* What was best beside the CPU's updates need not be beside what the link carries then: starts
 * alone left 5 % to what streaming all reaches (tests/offload/test_search.c). */
static void search_streamed(struct search *search, const struct place_limits *limits)
{
    struct place_limits with = *limits;
    with.most[KNOB_STREAMED] = place_knob_max(search->place, KNOB_STREAMED);
    try_starts(search, &with);
    for (uint32_t i = 0; i < SAMPLES; i++)
        try_sample(search, &with, i);
    try_device(search, &with);
    descend_from_best(search, 1);
    search->at = search->best;
    search->score = search->best_score;
    trade(search);
    stream(search);
}

double place_search(struct place *place, const struct place_limits *limits, double most_per_day,
                    struct place_choice *choice)
{
    struct search *search = mem_alloc(1, sizeof(*search));
    search->place = place;
    search->most_per_day = most_per_day;
    search->best_per_day = INFINITY;
    search->best_score = search->score = INFINITY;
    search->seen_max = PLACE_SEARCH_EVALUATIONS_MAX - STREAMED_LINES * STREAMED_MOST;
    coarse_init(&search->coarse, place->spec.layout);
    search->best = *choice;
    struct place_limits without = *limits;
    without.most[KNOB_DEVICE] = 0;
    try_limits(search, &without);
    try_starts(search, &without);
    for (uint32_t i = 0; i < SAMPLES; i++)
        try_sample(search, &without, i);
    descend_from_best(search, DESCENTS);
    if (place_knob_max(place, KNOB_DEVICE)) {
        search->with_device = true;
        try_device(search, limits);
        descend_from_best(search, DEVICE_DESCENTS);
    }
    search->at = search->best;
    search->score = search->best_score;
    trade(search);
    if (place->spec.update == UPDATE_AUTO && place_knob_max(place, KNOB_STREAMED)) {
        stream(search);
        if (search->best.knob[KNOB_STREAMED])
            search_streamed(search, limits);
    }
    give_back(search);
    *choice = search->best;
    place->predicted_s = search->best_s;
    place->evaluations = search->seen_count;
    double per_day = search->best_per_day;
    coarse_deinit(&search->coarse);
    mem_free(search);
    return per_day;
}

/* ---- Within a write budget --------------------------------------------------------------------
 */

static int refuse_writes(const struct place_spec *spec, double least, struct err *err)
{
    char budget[LOG_BYTES_MAX], need[LOG_BYTES_MAX];
    /* A little more than what was found, as with the other budgets. */
    uint64_t works = (uint64_t)(least * (1 + 1.0 / 32));
    return err_set(err, ERR_INPUT,
                   "the write budget of %s a day is too small: of the placements that fit, the one "
                   "that spares the drive most writes %s a day, commits included; what lessens it: "
                   "more RAM (--ram-budget), more tokens a step (--accum)%s; the smallest that "
                   "works, other options as given: --write-budget %lluM",
                   log_bytes(budget, spec->write_budget), log_bytes(need, (uint64_t)least),
                   spec->checkpoint_every ? ", fewer commits (--checkpoint-every)" : "",
                   (unsigned long long)div_up(works, MIB));
}

/* What a choice writes a day at chunk level. */
static double written_per_day(struct place *place, const struct place_choice *choice)
{
    struct sched_result result;
    struct wear wear;
    uint32_t prefetch = place->spec.prefetch;
    place_apply(place, choice);
    double seconds = coarse_step(place, &result, NULL);
    wear_of(&wear, place, result.bytes[LANE_SSD_WRITE], seconds);
    place->spec.prefetch = prefetch; /* as asked: another search follows, perhaps */
    return wear.bytes_per_day;
}

int place_search_writes(struct place *place, const struct place_limits *limits,
                        struct place_choice *choice, struct err *err)
{
    double budget = (double)place->spec.write_budget, most = budget, least = INFINITY;
    struct place_choice start = *choice;
    ASSERT(budget > 0);
    for (uint32_t round = 0; round < WRITE_ROUNDS_MAX; round++) {
        *choice = start;
        double coarse = place_search(place, limits, most, choice);
        double fine = written_per_day(place, choice);
        if (fine <= budget || place->nvme_bytes > place->spec.nvme_budget)
            return 0;
        least = fmin(least, fine);
        if (coarse > most)
            break;
        most = fmin(most, coarse) * budget / fine;
    }
    return refuse_writes(&place->spec, least, err);
}
