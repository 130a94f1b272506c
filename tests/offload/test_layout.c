/*
 * Properties: chunks cover every group's vector exactly once and in order; everything that a drive
 * sees is aligned; planes of a chunk lie back to back and slots have no hole; tiles are runs of
 * wte's chunks, and of an untied head's, that cover the rows of the vocabulary once, all of one
 * height but the last; blocks are alike. Method: many models, among them odd vocabularies and
 * channels that no power of two divides, in many sizes of chunk and tile; each cut is walked and
 * compared with the tensors.
 */
#include "tests/shared/check.h"
#include "tests/shared/choices.h"
#include "tests/shared/tiny.h"

/* The chunks of one run of parameters; returns the chunk after the last. */
static uint32_t check_run(const struct layout *layout, uint32_t chunk, uint32_t group,
                          uint64_t first, uint64_t count, uint64_t chunk_max)
{
    uint64_t done = 0, padding = 0;
    while (done < count) {
        assert_true(chunk < layout->chunk_count);
        const struct layout_chunk *c = &layout->chunks[chunk];
        assert_int_equal(c->group, group);
        assert_int_equal(c->position, chunk - layout->group_first_chunk[group]);
        assert_int_equal(c->first, first + done);
        assert_int_equal(padding, 0); /* only the last one of a run is padded */
        assert_true(c->real_count > 0 && c->real_count <= c->count && c->count <= chunk_max);
        assert_int_equal(c->first % LAYOUT_PAD, 0);
        assert_int_equal(c->count % LAYOUT_PAD, 0);
        padding = c->count - c->real_count;
        assert_true(padding < LAYOUT_PAD);
        done += c->real_count;
        chunk++;
    }
    assert_int_equal(done, count);
    return chunk;
}

/* Parts follow each other without a gap, and the last ends within the plane's padding. */
static void check_parts(const struct layout *layout, const struct layout_chunk *c)
{
    uint64_t parts = div_up(c->count, LAYOUT_PART_PARAMETERS);
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        uint64_t bytes = layout_plane_bytes(layout, c->count, p);
        uint64_t least = layout_least_bytes(layout, c->count, p);
        assert_int_equal(layout_part_offset(layout, p, 0), 0);
        assert_true(layout_part_offset(layout, p, parts - 1) < least);
        assert_true(least <= layout_part_offset(layout, p, parts));
        assert_true(least <= bytes && bytes - least < IO_ALIGN);
    }
}

static void check_offsets(const struct layout *layout)
{
    uint64_t offset = 0, padded = 0, real = 0, count_max = 0;
    for (uint32_t i = 0; i < layout->chunk_count; i++) {
        const struct layout_chunk *c = &layout->chunks[i];
        assert_int_equal(c->offset, offset);
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            assert_int_equal(c->offset + layout_plane_offset(layout, c->count, p), offset);
            assert_int_equal(offset % IO_ALIGN, 0);
            offset += layout_plane_bytes(layout, c->count, p);
        }
        assert_int_equal(offset - c->offset, layout_state_bytes(layout, c->count));
        check_parts(layout, c);
        padded += c->count;
        real += c->real_count;
        count_max = MAX(count_max, c->count);
    }
    assert_int_equal(layout->slot_bytes, offset);
    assert_int_equal(layout->padded_parameters, padded);
    assert_int_equal(layout->real_parameters, real);
    assert_int_equal(layout->chunk_count_max, count_max);
}

/* Runs: all chunks in order, each run of one size and as long as can be. */
static void check_runs(const struct layout *layout)
{
    uint32_t next = 0;
    for (uint32_t r = 0; r < layout->run_count; r++) {
        const struct layout_run *run = &layout->runs[r];
        assert_int_equal(run->first_chunk, next);
        assert_true(run->chunk_count > 0 && (r == 0 || run->each != layout->runs[r - 1].each));
        for (uint32_t i = 0; i < run->chunk_count; i++, next++)
            assert_int_equal(layout->chunks[next].count, run->each);
    }
    assert_int_equal(next, layout->chunk_count);
}

/* The tiles [first, first + tile_count), over the chunks from `chunk` on; returns the chunk after
 * the last. */
static uint32_t check_tiles(const struct layout *layout, uint32_t first, uint32_t chunk,
                            uint32_t vocab, uint32_t channels)
{
    uint32_t row = 0, chunks_max = 0;
    uint64_t count_max = 0;
    for (uint32_t t = 0; t < layout->tile_count; t++) {
        const struct layout_tile *tile = &layout->tiles[first + t];
        uint64_t count = 0, real = 0;
        assert_int_equal(tile->first_chunk, chunk);
        assert_int_equal(tile->row_first, row);
        assert_int_equal(layout->chunks[chunk].first, (uint64_t)row * channels);
        for (uint32_t i = 0; i < tile->chunk_count; i++, chunk++) {
            count += layout->chunks[chunk].count;
            real += layout->chunks[chunk].real_count;
        }
        assert_int_equal(tile->count, count);
        assert_int_equal(real, (uint64_t)tile->row_count * channels);
        if (t + 1 < layout->tile_count)
            assert_int_equal(tile->row_count, layout->tile_rows_max);
        assert_in_range(tile->row_count, 1, layout->tile_rows_max);
        row += tile->row_count;
        count_max = MAX(count_max, count);
        chunks_max = MAX(chunks_max, tile->chunk_count);
    }
    assert_int_equal(row, vocab);
    assert_int_equal(layout->tile_slot_count, count_max);
    assert_int_equal(layout->tile_chunks_max, chunks_max);
    /* The memory of a tile is cut like the first one: no tile is larger. */
    assert_int_equal(layout->tiles[0].chunk_count, chunks_max);
    return chunk;
}

/* Blocks, the final norm, and a head that is not tied; returns the chunk after the last. */
static uint32_t check_groups(const struct layout *layout, const struct tensors *tensors,
                             uint32_t next, uint64_t chunk, uint64_t wte_chunk_max)
{
    uint32_t groups = tensors->group_count, final = layout->tied ? groups - 1 : groups - 2;
    for (uint32_t g = 1; g < groups; g++) {
        uint32_t first = next;
        uint64_t count = tensors->groups[g].parameter_count;
        assert_int_equal(layout->group_first_chunk[g], next);
        next = check_run(layout, next, g, 0, count, g > final ? wte_chunk_max : chunk);
        if (g < final)
            assert_int_equal(layout->block_chunks, next - first);
        if (g == final) {
            assert_int_equal(layout->final_chunk, first);
            assert_int_equal(layout->final_count, round_up(count, LAYOUT_PAD));
        }
    }
    assert_int_equal(layout->group_first_chunk[groups], next);
    return next;
}

static void check_layout(const struct layout *layout, const struct tensors *tensors, uint64_t chunk,
                         uint64_t tile, bool tied)
{
    const struct tensor *wte = &tensors->list[0];
    const struct tensor *wpe = tensors->groups[0].tensor_count > 1 ? &tensors->list[1] : NULL;
    uint32_t channels = wte->shape[1], next = 0;
    /* A chunk of wte is never less than the fewest whole rows that are whole pads. */
    uint64_t row_unit = channels;
    while (row_unit % LAYOUT_PAD)
        row_unit += channels;
    uint64_t wte_chunk_max = MAX(chunk, row_unit);
    assert_int_equal(layout->group_count, tensors->group_count);
    assert_true(layout->tied == tied);
    next = check_run(layout, next, 0, wte->offset, wte->count, wte_chunk_max);
    assert_int_equal(layout->wpe_first_chunk, next);
    if (wpe)
        next = check_run(layout, next, 0, wpe->offset, wpe->count, chunk);
    assert_int_equal(layout->wpe_chunk_count, next - layout->wpe_first_chunk);
    assert_int_equal(layout->wpe_count, wpe ? round_up(wpe->count, LAYOUT_PAD) : 0);
    next = check_groups(layout, tensors, next, chunk, wte_chunk_max);
    assert_int_equal(next, layout->chunk_count);
    assert_int_equal(layout->block_count, round_up(tensors->groups[1].parameter_count, LAYOUT_PAD));
    assert_true(layout->tile_slot_count <= MAX(tile, layout->chunks[0].count));
    check_offsets(layout);
    check_runs(layout);
    next = check_tiles(layout, 0, 0, wte->shape[0], channels);
    assert_int_equal(next, layout->wpe_first_chunk);
    if (tied)
        return;
    next =
        check_tiles(layout, layout->tile_count, layout->final_chunk + 1, wte->shape[0], channels);
    assert_int_equal(next, layout->chunk_count);
}

static void test_cuts(void **state)
{
    (void)state;
    static const uint32_t channels[] = {32, 64, 96, 160, 1600};
    static const uint32_t vocabs[] = {1, 131, 300, 2048, 50257};
    static const uint64_t chunks[] = {2048, 4096, 8192, 65536, LAYOUT_CHUNK_PARAMETERS};
    static const uint64_t tiles[] = {1, 8192, 100000, LAYOUT_TILE_PARAMETERS};
    for (size_t c = 0; c < ARRAY_COUNT(channels); c++)
        for (size_t v = 0; v < ARRAY_COUNT(vocabs); v++)
            for (size_t k = 0; k < ARRAY_COUNT(chunks); k++)
                for (size_t t = 0; t < ARRAY_COUNT(tiles); t++) {
                    struct tiny_model model;
                    tiny_model_init(&model, 2, channels[c], vocabs[v], chunks[k], tiles[t]);
                    check_layout(&model.layout, &model.tensors, chunks[k], tiles[t], true);
                    tiny_model_set_moments(&model, (enum moments_kind)((v + k + t) % 3));
                    check_layout(&model.layout, &model.tensors, chunks[k], tiles[t], true);
                    tiny_model_deinit(&model);
                }
}

static void test_known_models(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2-124m", "gpt2-355m",  "gpt2-1558m",
                                        "llama-8b",  "mistral-7b", "qwen-14b"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct config config;
        struct tensors tensors;
        struct layout layout;
        struct err err;
        assert_int_equal(config_from_name(&config, names[i], &err), 0);
        tensors_init(&tensors, &config);
        layout_init(&layout, &tensors, MOMENTS_FP32);
        check_layout(&layout, &tensors, LAYOUT_CHUNK_PARAMETERS, LAYOUT_TILE_PARAMETERS,
                     !config_has_head(&config));
        assert_true(layout.real_parameters >= config_parameter_count(&config));
        /* Padding is what a user pays for without using it: never as much as one percent. */
        assert_true(layout.padded_parameters - config_parameter_count(&config) <
                    config_parameter_count(&config) / 100);
        layout_deinit(&layout);
        tensors_deinit(&tensors);
    }
}

/* Models without positions, with a head of their own and without. */
static void test_kinds(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-llama", "tiny-tied"};
    static const uint64_t chunks[] = {2048, 4096, 65536};
    static const uint64_t tiles[] = {1, 8192, 100000};
    for (size_t n = 0; n < ARRAY_COUNT(names); n++)
        for (size_t k = 0; k < ARRAY_COUNT(chunks); k++)
            for (size_t t = 0; t < ARRAY_COUNT(tiles); t++) {
                struct tiny_model model;
                choices_model(&model, names[n], chunks[k], tiles[t]);
                check_layout(&model.layout, &model.tensors, chunks[k], tiles[t], n == 1);
                assert_int_equal(model.layout.wpe_chunk_count, 0);
                tiny_model_deinit(&model);
            }
}

/* A model that would have too many chunks has fewer, larger ones: qwen-32b has 32.8 G parameters.
 */
static void test_large_chunks(void **state)
{
    (void)state;
    struct tiny_model model;
    choices_model(&model, "qwen-32b", 0, 0);
    check_layout(&model.layout, &model.tensors, LAYOUT_CHUNK_PARAMETERS_MAX,
                 LAYOUT_CHUNK_PARAMETERS_MAX * LAYOUT_TILE_CHUNKS, false);
    assert_true(model.layout.chunk_count <= LAYOUT_CHUNKS_MANY);
    assert_int_equal(model.layout.chunk_count_max, LAYOUT_CHUNK_PARAMETERS_MAX);
    tiny_model_deinit(&model);
}

/* The cut is part of the state file's format: other numbers here mean that no run can be resumed.
 */
static void test_frozen(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 2, 96, 50257, 0, 0);
    const struct layout *layout = &model.layout;
    assert_int_equal(layout->chunks[0].count, 2688 * 96);
    assert_int_equal(layout->wpe_first_chunk, 19);
    assert_int_equal(layout->tile_count, 5);
    assert_int_equal(layout->tiles[4].row_count, 50257 - 4 * 4 * 2688);
    assert_int_equal(layout->chunk_count, 19 + 1 + 2 + 1);
    assert_int_equal(layout->chunks[1].offset, (uint64_t)2688 * 96 * 12);
    assert_int_equal(layout->slot_bytes, layout->padded_parameters * 12);
    tiny_model_set_moments(&model, MOMENTS_BF16);
    assert_int_equal(layout->chunks[1].offset, (uint64_t)2688 * 96 * 8);
    assert_int_equal(layout->slot_bytes, layout->padded_parameters * 8);
    tiny_model_set_moments(&model, MOMENTS_8BIT);
    /* 1,008 blocks of 260 bytes, and 64 bytes to whole pages. */
    assert_int_equal(layout->chunks[1].offset, (uint64_t)2688 * 96 * 4 + 2 * 64 * 4096);
    assert_true(layout->slot_bytes < layout->padded_parameters * 625 / 100);
    tiny_model_deinit(&model);
}

static void test_deinit_of_zeroed(void **state)
{
    (void)state;
    struct layout layout = {0};
    layout_deinit(&layout);
    assert_null(layout.chunks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),   cmocka_unit_test(test_known_models),
        cmocka_unit_test(test_kinds),  cmocka_unit_test(test_large_chunks),
        cmocka_unit_test(test_frozen), cmocka_unit_test(test_deinit_of_zeroed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
