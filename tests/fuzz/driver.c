/*
 * driver: a fuzzer without feedback, for where there is no libFuzzer. driver SECONDS [SEED]: takes
 * a seed or two, cuts, repeats, joins and flips, and gives the result to the entry, until the time
 * is over. What it gives depends on SEED alone; before each call the input's number is kept, so
 * that the message of a crash can be followed by `driver 0 SEED NUMBER`, which repeats that one.
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/rng.h"
#include "tests/fuzz/fuzz.h"
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEEDS_MAX 64

static uint8_t seeds[SEEDS_MAX][FUZZ_INPUT_MAX], input[FUZZ_INPUT_MAX];
static size_t seed_bytes[SEEDS_MAX], seed_count;
static char told[64]; /* "input NUMBER\n", for the handler */

static void on_abort(int signal_number)
{
    ssize_t written = write(STDERR_FILENO, told, strlen(told));
    (void)written;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* One change of input[0, bytes); returns its new length. */
static size_t mutate(size_t bytes, uint64_t seed, uint64_t number, uint64_t *draws)
{
#define DRAW(bound) rng_below(seed, number, (*draws)++, (bound))
    size_t at = DRAW(bytes + 1), count = DRAW(MIN(bytes - at, (size_t)64) + 1);
    switch (DRAW(6)) {
    case 0: /* a byte becomes another */
        if (at < bytes)
            input[at] = (uint8_t)DRAW(256);
        return bytes;
    case 1: /* a bit is flipped */
        if (at < bytes)
            input[at] ^= (uint8_t)(1 << DRAW(8));
        return bytes;
    case 2: /* some bytes go */
        memmove(input + at, input + at + count, bytes - at - count);
        return bytes - count;
    case 3: /* or come again, some times */
        for (uint64_t again = DRAW(40); again > 0 && bytes + count <= FUZZ_INPUT_MAX; again--) {
            memmove(input + at + count, input + at, bytes - at);
            bytes += count;
        }
        return bytes;
    case 4: /* the end is cut off */
        return at;
    default: { /* a part of a seed comes between */
        const size_t which = DRAW(seed_count), from = DRAW(seed_bytes[which] + 1);
        count = MIN(DRAW(seed_bytes[which] - from + 1), FUZZ_INPUT_MAX - bytes);
        memmove(input + at + count, input + at, bytes - at);
        memcpy(input + at, seeds[which] + from, count);
        return bytes + count;
    }
    }
#undef DRAW
}

static void run_one(uint64_t seed, uint64_t number)
{
    uint64_t draws = 0;
    size_t which = rng_below(seed, number, draws++, seed_count), bytes = seed_bytes[which];
    memcpy(input, seeds[which], bytes);
    for (uint64_t changes = rng_below(seed, number, draws++, 12); changes > 0; changes--)
        bytes = mutate(bytes, seed, number, &draws);
    snprintf(told, sizeof(told), "input %" PRIu64 "\n", number);
    /* A copy of just that size, so that the sanitizer sees what reads beyond it. */
    uint8_t *copy = malloc(bytes + (bytes == 0));
    ASSERT(copy != NULL);
    memcpy(copy, input, bytes);
    LLVMFuzzerTestOneInput(copy, bytes);
    free(copy);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 10;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, number = 0;
    signal(SIGABRT, on_abort);
    while (seed_count < SEEDS_MAX &&
           (seed_bytes[seed_count] = fuzz_seed(seed_count, seeds[seed_count])) != SIZE_MAX)
        seed_count++;
    ASSERT(seed_count > 0);
    if (argc > 3) {
        run_one(seed, strtoull(argv[3], NULL, 10));
        return 0;
    }
    uint64_t end_ns = clock_ns() + (uint64_t)(seconds * 1e9);
    while (clock_ns() < end_ns)
        run_one(seed, number++);
    printf("%" PRIu64 " inputs\n", number);
    return 0;
}
