/*
 * Properties: chunks cover every group's vector exactly once and in order; everything that a drive
 * sees is aligned; planes of a chunk lie back to back and slots have no hole; tiles are runs of
 * wte's chunks that cover the rows of the vocabulary once, all of one height but the last; blocks
 * are alike. Method: many models, among them odd vocabularies and channels that no power of two
 * divides, in many sizes of chunk and tile; each cut is walked and compared with the tensors.
 */
#include "tests/shared/check.h"
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

static void check_offsets(const struct layout *layout)
{
    uint64_t offset = 0, padded = 0, real = 0, count_max = 0;
    for (uint32_t i = 0; i < layout->chunk_count; i++) {
        const struct layout_chunk *c = &layout->chunks[i];
        assert_int_equal(c->offset, offset);
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            assert_int_equal(c->offset + layout_plane_offset(c, p), offset);
            assert_int_equal(offset % IO_ALIGN, 0);
            offset += c->count * layout_plane_bytes[p];
        }
        assert_int_equal(offset - c->offset, c->count * LAYOUT_STATE_BYTES);
        padded += c->count;
        real += c->real_count;
        count_max = MAX(count_max, c->count);
    }
    assert_int_equal(layout->slot_bytes, offset);
    assert_int_equal(layout->padded_parameters, padded);
    assert_int_equal(layout->real_parameters, real);
    assert_int_equal(layout->chunk_count_max, count_max);
}

static void check_tiles(const struct layout *layout, uint32_t vocab, uint32_t channels)
{
    uint32_t chunk = 0, row = 0, chunks_max = 0;
    uint64_t count_max = 0;
    for (uint32_t t = 0; t < layout->tile_count; t++) {
        const struct layout_tile *tile = &layout->tiles[t];
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
    assert_int_equal(chunk, layout->wpe_first_chunk);
    assert_int_equal(layout->tile_slot_count, count_max);
    assert_int_equal(layout->tile_chunks_max, chunks_max);
    /* The memory of a tile is cut like the first one: no tile is larger. */
    assert_int_equal(layout->tiles[0].chunk_count, chunks_max);
}

static void check_layout(const struct layout *layout, const struct tensors *tensors, uint64_t chunk,
                         uint64_t tile)
{
    const struct tensor *wte = &tensors->list[0], *wpe = &tensors->list[1];
    uint32_t channels = wte->shape[1], next = 0;
    /* A chunk of wte is never less than the fewest whole rows that are whole pads. */
    uint64_t row_unit = channels;
    while (row_unit % LAYOUT_PAD)
        row_unit += channels;
    uint64_t wte_chunk_max = MAX(chunk, row_unit);
    assert_int_equal(layout->group_count, tensors->group_count);
    next = check_run(layout, next, 0, wte->offset, wte->count, wte_chunk_max);
    assert_int_equal(layout->wpe_first_chunk, next);
    next = check_run(layout, next, 0, wpe->offset, wpe->count, chunk);
    assert_int_equal(layout->wpe_chunk_count, next - layout->wpe_first_chunk);
    uint64_t last = tensors->groups[tensors->group_count - 1].parameter_count;
    for (uint32_t g = 1; g < tensors->group_count; g++) {
        uint32_t first = next;
        assert_int_equal(layout->group_first_chunk[g], next);
        next = check_run(layout, next, g, 0, tensors->groups[g].parameter_count, chunk);
        if (g + 1 < tensors->group_count)
            assert_int_equal(layout->block_chunks, next - first);
    }
    assert_int_equal(next, layout->chunk_count);
    assert_int_equal(layout->group_first_chunk[tensors->group_count], next);
    assert_int_equal(layout->block_count, round_up(tensors->groups[1].parameter_count, LAYOUT_PAD));
    assert_int_equal(layout->final_count, round_up(last, LAYOUT_PAD));
    assert_int_equal(layout->wpe_count, round_up(wpe->count, LAYOUT_PAD));
    assert_true(layout->tile_slot_count <= MAX(tile, layout->chunks[0].count));
    check_offsets(layout);
    check_tiles(layout, wte->shape[0], channels);
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
                    check_layout(&model.layout, &model.tensors, chunks[k], tiles[t]);
                    tiny_model_deinit(&model);
                }
}

static void test_known_models(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2-124m", "gpt2-355m", "gpt2-1558m"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct config config;
        struct tensors tensors;
        struct layout layout;
        struct err err;
        assert_int_equal(config_from_name(&config, names[i], &err), 0);
        tensors_init(&tensors, &config);
        layout_init(&layout, &tensors);
        check_layout(&layout, &tensors, LAYOUT_CHUNK_PARAMETERS, LAYOUT_TILE_PARAMETERS);
        assert_true(layout.real_parameters >= config_parameter_count(&config));
        /* Padding is what a user pays for without using it: never as much as one percent. */
        assert_true(layout.padded_parameters - config_parameter_count(&config) <
                    config_parameter_count(&config) / 100);
        layout_deinit(&layout);
        tensors_deinit(&tensors);
    }
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
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_known_models),
        cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_deinit_of_zeroed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
