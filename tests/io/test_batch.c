/*
 * Property: sequence n is a pure function of (seed, n); an epoch visits every window exactly once,
 * windows lie seq apart and inside the shard, targets are the inputs moved by one; epochs and seeds
 * differ. Method: a shard whose token at i is i, so that a sequence tells where it came from.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/batch.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <string.h>

static void open_counting_shard(struct shard *shard, uint64_t token_count)
{
    struct err err;
    struct shard_writer *writer;
    const char *path = scratch_path("count.tok");
    assert_int_equal(shard_writer_open(&writer, path, 100000, 0, &err), 0);
    for (uint32_t i = 0; i < token_count; i++)
        assert_int_equal(shard_writer_append(writer, &i, 1, &err), 0);
    shard_writer_end_document(writer);
    assert_int_equal(shard_writer_close(writer, &err), 0);
    assert_int_equal(shard_open(shard, path, &err), 0);
}

/* The window's first token; checks the rest of it. */
static uint32_t sequence_start(const struct batch_source *source, uint64_t sequence)
{
    uint32_t inputs[64], targets[64];
    assert_true(source->seq <= 64);
    batch_sequence(source, sequence, inputs, targets);
    for (uint32_t i = 0; i < source->seq; i++) {
        assert_int_equal(inputs[i], inputs[0] + i);
        assert_int_equal(targets[i], inputs[0] + i + 1);
    }
    return inputs[0];
}

static void check_epoch(const struct batch_source *source, uint64_t epoch, uint64_t token_count)
{
    uint8_t *seen = mem_alloc(source->window_count, 1);
    uint64_t first = epoch * source->window_count;
    uint32_t offset = sequence_start(source, first) % source->seq;
    for (uint64_t i = 0; i < source->window_count; i++) {
        uint32_t start = sequence_start(source, first + i);
        assert_true(start + source->seq + 1 <= token_count);
        uint32_t window = start / source->seq;
        assert_int_equal(start % source->seq, offset);
        assert_true(window < source->window_count);
        assert_int_equal(seen[window], 0);
        seen[window] = 1;
    }
    mem_free(seen);
}

static void test_epochs(void **state)
{
    (void)state;
    static const uint64_t counts[] = {2, 3, 9, 10, 15, 16, 17, 24, 33, 1000, 5001};
    static const uint32_t seqs[] = {1, 7, 8, 64};
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        struct shard shard;
        open_counting_shard(&shard, counts[c]);
        for (size_t s = 0; s < ARRAY_COUNT(seqs); s++) {
            struct err err;
            struct batch_source source;
            int code = batch_init(&source, &shard, 3, seqs[s], &err);
            assert_int_equal(code == 0, counts[c] > seqs[s]);
            for (uint64_t epoch = 0; code == 0 && epoch < 4; epoch++)
                check_epoch(&source, epoch, counts[c]);
        }
        shard_close(&shard);
    }
}

static void test_too_short(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    struct batch_source source;
    open_counting_shard(&shard, 8);
    assert_int_equal(batch_init(&source, &shard, 0, 8, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "8 tokens"));
    assert_non_null(strstr(err.message, "needs 9"));
    assert_int_equal(batch_init(&source, &shard, 0, 7, &err), 0);
    shard_close(&shard);
}

/* Share of sequences that start where the other's do: a few by chance, not most. */
static uint64_t same_starts(const struct batch_source *a, uint64_t a_first,
                            const struct batch_source *b, uint64_t b_first, uint64_t count)
{
    uint64_t same = 0;
    for (uint64_t i = 0; i < count; i++)
        same += sequence_start(a, a_first + i) == sequence_start(b, b_first + i);
    return same;
}

static void test_order(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    struct batch_source one, again, other;
    open_counting_shard(&shard, 20000);
    assert_int_equal(batch_init(&one, &shard, 5, 16, &err), 0);
    assert_int_equal(batch_init(&again, &shard, 5, 16, &err), 0);
    assert_int_equal(batch_init(&other, &shard, 6, 16, &err), 0);
    assert_int_equal(one.window_count, (20000 - 16) / 16);
    assert_int_equal(same_starts(&one, 0, &again, 0, 500), 500);
    assert_true(same_starts(&one, 0, &other, 0, 500) < 10);
    assert_true(same_starts(&one, 0, &one, one.window_count, 500) < 10);
    /* Each epoch cuts its windows elsewhere. */
    uint32_t offsets = 0;
    for (uint64_t epoch = 0; epoch < 16; epoch++)
        offsets |= 1u << sequence_start(&one, epoch * one.window_count) % 16;
    assert_true(__builtin_popcount(offsets) > 5);
    /* Shuffled: neighbours in the order are rarely neighbours in the text. */
    uint64_t neighbours = 0;
    for (uint64_t i = 0; i < 500; i++)
        neighbours += sequence_start(&one, i) + 16 == sequence_start(&one, i + 1);
    assert_true(neighbours < 10);
    shard_close(&shard);
}

/* Asking ahead and letting go change nothing of what is read, up to the shard's last token. */
static void test_fetch_and_forget(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    struct batch_source plain, forgetful;
    open_counting_shard(&shard, 50000);
    assert_int_equal(batch_init(&plain, &shard, 9, 64, &err), 0);
    assert_false(plain.forgets);
    forgetful = plain;
    forgetful.forgets = true;
    for (uint64_t i = 0; i < 2 * plain.window_count; i++) {
        batch_fetch(&forgetful, i + 1, 3);
        assert_int_equal(sequence_start(&forgetful, i), sequence_start(&plain, i));
    }
    shard_close(&shard);
}

/* A shard of documents of these lengths, its token at i being i. */
static void open_documents(struct shard *shard, const uint32_t *lengths, size_t count)
{
    struct err err;
    struct shard_writer *writer;
    const char *path = scratch_path("documents.tok");
    uint32_t next = 0;
    assert_int_equal(shard_writer_open(&writer, path, 1000000, 0, &err), 0);
    for (size_t d = 0; d < count; d++) {
        for (uint32_t i = 0; i < lengths[d]; i++, next++)
            assert_int_equal(shard_writer_append(writer, &next, 1, &err), 0);
        shard_writer_end_document(writer);
    }
    assert_int_equal(shard_writer_close(writer, &err), 0);
    assert_int_equal(shard_open(shard, path, &err), 0);
}

/* The document that holds token `start`. */
static uint64_t document_of(const struct shard *shard, uint32_t start)
{
    uint64_t document = 0;
    while (document + 1 < shard->document_count && shard->documents[document + 1] <= start)
        document++;
    return document;
}

static void check_within(const struct batch_source *source, const uint32_t *lengths, size_t count,
                         uint64_t epoch)
{
    uint32_t seen[600] = {0}, first[600];
    assert_true(count <= ARRAY_COUNT(seen));
    for (uint64_t i = 0; i < source->window_count; i++) {
        uint32_t start = sequence_start(source, epoch * source->window_count + i);
        uint64_t d = document_of(source->shard, start);
        uint32_t at = start - (uint32_t)source->shard->documents[d];
        assert_true(at + source->seq + 1 <= lengths[d]);
        /* Windows of a document lie whole sequences apart. */
        if (seen[d]++ == 0)
            first[d] = at % source->seq;
        assert_int_equal(at % source->seq, first[d]);
    }
    for (size_t d = 0; d < count; d++)
        assert_int_equal(seen[d], (lengths[d] - 1) / source->seq);
}

static void test_within(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    struct batch_source source;
    static const uint32_t few[] = {1, 9, 8, 17, 40, 2, 100, 16};
    uint32_t many[600];
    for (uint32_t i = 0; i < ARRAY_COUNT(many); i++)
        many[i] = 1 + i * 7 % 50;
    open_documents(&shard, few, ARRAY_COUNT(few));
    assert_int_equal(batch_init_within(&source, &shard, 3, 8, &err), 0);
    assert_int_equal(source.window_count, 0 + 1 + 0 + 2 + 4 + 0 + 12 + 1);
    for (uint64_t epoch = 0; epoch < 5; epoch++)
        check_within(&source, few, ARRAY_COUNT(few), epoch);
    batch_fetch(&source, 0, 50);
    batch_deinit(&source);
    /* Each epoch leaves out another part of what is over. */
    assert_int_equal(batch_init_within(&source, &shard, 3, 63, &err), 0);
    assert_int_equal(source.window_count, 1);
    uint32_t least = UINT32_MAX, most = 0;
    for (uint64_t epoch = 0; epoch < 50; epoch++) {
        uint32_t start = sequence_start(&source, epoch);
        least = MIN(least, start);
        most = MAX(most, start);
    }
    assert_true(most - least > 20);
    batch_deinit(&source);
    assert_int_equal(batch_init_within(&source, &shard, 3, 100, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "101 tokens"));
    batch_deinit(&source);
    shard_close(&shard);

    open_documents(&shard, many, ARRAY_COUNT(many));
    for (uint32_t seq = 1; seq <= 49; seq += 12) {
        assert_int_equal(batch_init_within(&source, &shard, seq, seq, &err), 0);
        check_within(&source, many, ARRAY_COUNT(many), 1);
        batch_deinit(&source);
    }
    shard_close(&shard);
}

/* The order is part of what makes a run repeatable on another machine and in later versions. */
static void test_order_is_fixed(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    struct batch_source source;
    open_counting_shard(&shard, 1000);
    assert_int_equal(batch_init(&source, &shard, 1, 10, &err), 0);
    static const uint32_t expected[] = {690, 910, 620, 680, 980, 150, 750, 370};
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++)
        assert_int_equal(sequence_start(&source, i), expected[i]);
    shard_close(&shard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epochs), cmocka_unit_test(test_too_short),
        cmocka_unit_test(test_order),  cmocka_unit_test(test_fetch_and_forget),
        cmocka_unit_test(test_within), cmocka_unit_test(test_order_is_fixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
