/*
 * Properties: fresh weights are those of the model's recipe (or of the weight file, bit for bit),
 * moments and padding are zero, whatever sits where; a committed state comes back exactly, under
 * any other placement and from another file; whichever transfer fails, the call says so with file
 * and offset, and the commit before is as it was; damage in a resident plane is found when it is
 * loaded. Method: a tiny model in many chunks, filled with a state of random bytes; planes are
 * compared with memory, an n-th-failure sweep runs over every transfer of every function.
 */
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/ring.h"
#include "io/safetensors.h"
#include "offload/state.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEED 11

static struct tiny_model model;

static int open_model(void **state)
{
    (void)state;
    tiny_model_init(&model, 2, 64, 300, 8192, 8192);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    tiny_model_deinit(&model);
    return 0;
}

/* Placements that differ in where planes are: none in RAM, some chunks, hi, all but v, all; some
 * chunks on the device, all there. */
#define PLACEMENTS 8

static void open_box(struct tiny_box *box, uint32_t placement, const char *name, bool create)
{
    static const int resident[PLACEMENTS] = {
        0, PLACE_RESIDENT_AUTO, 1, 2, 3, 4, PLACE_RESIDENT_DEVICE, PLACE_RESIDENT_DEVICE};
    struct place_spec spec;
    tiny_spec(&spec, &model);
    spec.resident_planes = resident[placement];
    spec.precision = placement % 2 ? PRECISION_BF16 : PRECISION_FP32;
    spec.vram_budget = placement % 3 == 2 || placement == 7 ? 64 * MIB : 0;
    if (placement == 1) {
        tiny_spec_shrink(&spec);
        spec.ram_budget += 800 * KIB;
    }
    if (placement == 6)
        spec.vram_budget = 2 * MIB;
    tiny_box_open(box, &model, &spec, name, create);
    uint32_t on_device = box->place.choice.knob[KNOB_DEVICE], all = model.layout.chunk_count;
    assert_in_range(on_device, placement == 7 ? all : placement == 6,
                    placement == 7   ? all
                    : placement == 6 ? all - 1
                                     : 0);
}

static void must(int result, const struct err *err)
{
    if (result != 0)
        fail_msg("%s", err->message);
}

/* The parameter of a tensor at its place in an image of the state; planes hi and lo joined. */
static float master_at(const uint8_t *image, const struct layout_chunk *chunk, uint64_t i)
{
    uint16_t hi;
    int16_t lo;
    memcpy(&hi, image + chunk->offset + i * 2, 2);
    memcpy(&lo, image + chunk->offset + chunk->count * 2 + i * 2, 2);
    return float_join(hi, lo);
}

/* ---- Fresh weights ----------------------------------------------------------------------------
 */

typedef float expected_fn(uint32_t tensor, uint64_t index);

static float by_recipe(uint32_t tensor, uint64_t index)
{
    return tensors_initial_value(&model.tensors, tensor, index, SEED);
}

static float by_file(uint32_t tensor, uint64_t index)
{
    return (float)rng_normal(5, tensor, index) * 1e-3f;
}

/* Every parameter of every chunk: a tensor's value, or zero between and behind the tensors. */
static void check_image(const uint8_t *image, expected_fn *expected)
{
    uint64_t found = 0;
    for (uint32_t c = 0; c < model.layout.chunk_count; c++) {
        const struct layout_chunk *chunk = &model.layout.chunks[c];
        const struct tensor_group *group = &model.tensors.groups[chunk->group];
        uint32_t t = group->first_tensor, end = t + group->tensor_count;
        for (uint64_t i = 0; i < chunk->count; i++) {
            uint64_t at = chunk->first + i;
            while (t < end && at >= model.tensors.list[t].offset + model.tensors.list[t].count)
                t++;
            float value = 0;
            if (t < end && at >= model.tensors.list[t].offset) {
                value = expected(t, at - model.tensors.list[t].offset);
                found++;
            }
            assert_int_equal(float_bits(master_at(image, chunk, i)), float_bits(value));
        }
        uint64_t moments = chunk->offset + chunk->count * 4;
        for (uint64_t i = 0; i < chunk->count * 8; i++)
            assert_int_equal(image[moments + i], 0);
    }
    assert_int_equal(found, model.tensors.parameter_count);
}

static void check_created(const struct safetensors *weights, expected_fn *expected)
{
    uint64_t hash = 0;
    for (uint32_t p = 0; p < PLACEMENTS; p++) {
        struct tiny_box box;
        struct err err;
        open_box(&box, p, "created", access(scratch_path("box-created/tier.state"), F_OK) != 0);
        /* What was in memory before must not shine through. */
        memset(box.exec.ram.base, 0xa5, box.exec.ram.bytes);
        must(state_create(&box.exec, box.ring, &model.tensors, SEED, weights, &err), &err);
        uint8_t *image = tiny_box_state(&box);
        check_image(image, expected);
        for (uint32_t i = 0; i < model.layout.chunk_count * PLANE_COUNT; i++) {
            const struct layout_chunk *chunk = &model.layout.chunks[i / PLANE_COUNT];
            enum plane plane = i % PLANE_COUNT;
            assert_int_equal(
                box.tier.plane_sums[i],
                tier_plane_sum(&model.layout, i / PLANE_COUNT, plane,
                               image + chunk->offset +
                                   layout_plane_offset(&model.layout, chunk->count, plane)));
        }
        if (p == 0)
            hash = tier_weights_hash(&box.tier);
        assert_int_equal(tier_weights_hash(&box.tier), hash);
        mem_free(image);
        tiny_box_close(&box);
    }
}

static void test_created(void **state)
{
    (void)state;
    check_created(NULL, by_recipe);
}

/* A weight file; damage: a tensor with another shape, one too few, a value that is no number. */
enum damage { WHOLE, PREFIX, SHAPE, MISSING, NOT_FINITE };

static struct safetensors *weight_file(enum damage damage)
{
    struct safetensors_tensor list[64] = {0};
    struct safetensors_writer *writer;
    struct safetensors *file;
    struct err err;
    uint32_t count = model.tensors.count - (damage == MISSING);
    assert_true(count < ARRAY_COUNT(list));
    const char *path = scratch_path("weights.safetensors");
    for (uint32_t t = 0; t < count; t++) {
        const struct tensor *tensor = &model.tensors.list[t];
        const char *name = tensor->name + (damage == PREFIX ? strlen("transformer.") : 0);
        snprintf(list[t].name, sizeof(list[t].name), "%s", name);
        list[t].dim_count = tensor->dim_count;
        list[t].shape[0] = tensor->shape[0];
        list[t].shape[1] = tensor->shape[1];
        list[t].element_count = tensor->count;
    }
    if (damage == SHAPE) {
        list[0].shape[0] /= 2;
        list[0].element_count /= 2;
    }
    must(safetensors_writer_open(&writer, path, list, count, &err), &err);
    for (uint32_t t = 0; t < count; t++)
        for (uint64_t i = 0; i < list[t].element_count; i++) {
            float value = damage == NOT_FINITE && t == 7 && i == 5 ? NAN : by_file(t, i);
            must(safetensors_writer_add(writer, &value, 1, &err), &err);
        }
    must(safetensors_writer_close(writer, &err), &err);
    must(safetensors_open(&file, path, &err), &err);
    return file;
}

static void test_created_from_weights(void **state)
{
    (void)state;
    struct err err;
    for (enum damage damage = WHOLE; damage <= PREFIX; damage++) {
        struct safetensors *file = weight_file(damage);
        must(state_check_weights(file, &model.tensors, &err), &err);
        check_created(file, by_file);
        safetensors_close(file);
    }
}

static void test_refused_weights(void **state)
{
    (void)state;
    struct err err;
    for (enum damage damage = SHAPE; damage <= MISSING; damage++) {
        struct safetensors *file = weight_file(damage);
        const struct tensor *tensor =
            &model.tensors.list[damage == SHAPE ? 0 : model.tensors.count - 1];
        assert_int_equal(state_check_weights(file, &model.tensors, &err), ERR_INPUT);
        assert_non_null(strstr(err.message, tensor->name));
        safetensors_close(file);
    }
    struct safetensors *file = weight_file(NOT_FINITE);
    struct tiny_box box;
    open_box(&box, 0, "nan", true);
    must(state_check_weights(file, &model.tensors, &err), &err);
    assert_int_equal(state_create(&box.exec, box.ring, &model.tensors, SEED, file, &err),
                     ERR_INPUT);
    assert_non_null(strstr(err.message, model.tensors.list[7].name));
    tiny_box_close(&box);
    safetensors_close(file);
}

/* ---- Loading and moving -----------------------------------------------------------------------
 */

/* Puts a state of random bytes into the box, so that no two planes are alike, and commits it. */
static uint8_t *randomize(struct tiny_box *box, uint64_t step)
{
    struct err err;
    uint64_t written;
    uint8_t *image = mem_alloc_aligned(IO_ALIGN, model.layout.slot_bytes);
    for (uint64_t i = 0; i < model.layout.slot_bytes; i += 8) {
        uint64_t word = rng_u64(step, RNG_STREAM_SAMPLE, i);
        memcpy(image + i, &word, 8);
    }
    for (uint32_t i = 0; i < model.layout.chunk_count * PLANE_COUNT; i++) {
        uint32_t c = i / PLANE_COUNT, p = i % PLANE_COUNT;
        const struct layout_chunk *chunk = &model.layout.chunks[c];
        uint8_t *plane =
            image + chunk->offset + layout_plane_offset(&model.layout, chunk->count, p);
        uint64_t bytes = layout_plane_bytes(&model.layout, chunk->count, p);
        box->tier.plane_sums[i] = tier_plane_sum(&model.layout, c, p, plane);
        if (p < box->place.resident[c]) {
            memcpy(exec_cell(&box->exec, box->memory.plane_ram.first + i), plane, bytes);
            continue;
        }
        if (box->place.on_device[c]) {
            memcpy(exec_cell(&box->exec, box->memory.plane_device.first + i), plane, bytes);
            continue;
        }
        struct tier_location at = tier_write_at(&box->tier, box->memory.plane_nvme.first + i);
        must(tier_transfer(&box->tier, box->ring, true, at, plane, bytes, &err), &err);
    }
    box->checkpoint.step = step;
    must(state_commit(&box->exec, box->ring, &written, &err), &err);
    return image;
}

static void check_state(struct tiny_box *box, const uint8_t *image)
{
    uint8_t *found = tiny_box_state(box);
    assert_memory_equal(found, image, model.layout.slot_bytes);
    mem_free(found);
}

static void load(struct tiny_box *box)
{
    struct checkpoint_manifest manifest;
    struct err err;
    must(checkpoint_load(&manifest, box->run_dir, &model.layout, &err), &err);
    must(state_load(&box->exec, box->ring, &manifest, &err), &err);
    assert_int_equal(box->tier.committed_slot, manifest.slot);
    assert_int_equal(tier_weights_hash(&box->tier), manifest.weights_hash);
    checkpoint_unload(&manifest);
}

static void test_loaded(void **state)
{
    (void)state;
    for (uint32_t from = 0; from < PLACEMENTS; from++) {
        struct tiny_box box;
        open_box(&box, from, "loaded", true);
        uint8_t *image = randomize(&box, 1);
        /* Every other time the commit lies in the second slot. */
        if (from % 2) {
            mem_free(image);
            image = randomize(&box, 2);
        }
        tiny_box_close(&box);
        for (uint32_t to = 0; to < PLACEMENTS; to++) {
            open_box(&box, to, "loaded", false);
            load(&box);
            check_state(&box, image);
            tiny_box_close(&box);
        }
        mem_free(image);
        scratch_remove(scratch_path("box-loaded"));
    }
}

static void test_moved(void **state)
{
    (void)state;
    for (uint32_t from = 0; from < PLACEMENTS; from++) {
        uint32_t to = (from + 2) % PLACEMENTS;
        struct tiny_box old, new;
        struct checkpoint_reader reader;
        struct err err;
        uint64_t written, hash;
        open_box(&old, from, "old", true);
        uint8_t *image = randomize(&old, 7);
        hash = tier_weights_hash(&old.tier);
        tiny_box_close(&old);
        open_box(&new, to, "new", true);
        must(checkpoint_reader_open(&reader, old.run_dir, &model.layout, &err), &err);
        must(state_move(&new.exec, new.ring, &reader, &err), &err);
        checkpoint_reader_close(&reader);
        check_state(&new, image);
        assert_int_equal(tier_weights_hash(&new.tier), hash);
        new.checkpoint.step = 7;
        must(state_commit(&new.exec, new.ring, &written, &err), &err);
        tiny_box_close(&new);
        open_box(&new, from, "new", false);
        load(&new);
        check_state(&new, image);
        tiny_box_close(&new);
        mem_free(image);
        scratch_remove(scratch_path("box-old"));
        scratch_remove(scratch_path("box-new"));
    }
}

static void test_committed_bytes(void **state)
{
    (void)state;
    for (uint32_t p = 0; p < PLACEMENTS; p++) {
        struct tiny_box box;
        struct err err;
        uint64_t written, resident = 0;
        open_box(&box, p, "bytes", true);
        must(state_create(&box.exec, box.ring, &model.tensors, SEED, NULL, &err), &err);
        must(state_commit(&box.exec, box.ring, &written, &err), &err);
        for (uint32_t c = 0; c < model.layout.chunk_count; c++)
            for (uint32_t i = 0; i < box.place.resident[c]; i++)
                resident += layout_plane_bytes(&model.layout, model.layout.chunks[c].count, i);
        uint64_t on_device = box.memory.content_bytes[TIER_DEVICE][CONTENT_STATE];
        assert_int_equal(written, resident + on_device);
        assert_int_equal(resident, box.memory.content_bytes[TIER_RAM][CONTENT_STATE]);
        tiny_box_close(&box);
    }
}

/* ---- Failures ---------------------------------------------------------------------------------
 */

struct nth {
    uint32_t at, seen;
};

static int32_t fail_nth(void *context, const struct ring_transfer *part, int32_t result)
{
    struct nth *nth = context;
    (void)part;
    return nth->seen++ == nth->at ? -EIO : result;
}

typedef int step_fn(struct tiny_box *box, struct err *err);

static int create_step(struct tiny_box *box, struct err *err)
{
    return state_create(&box->exec, box->ring, &model.tensors, SEED, NULL, err);
}

static int commit_step(struct tiny_box *box, struct err *err)
{
    uint64_t written;
    box->checkpoint.step = 99;
    return state_commit(&box->exec, box->ring, &written, err);
}

static int load_step(struct tiny_box *box, struct err *err)
{
    struct checkpoint_manifest manifest;
    int result = checkpoint_load(&manifest, box->run_dir, &model.layout, err);
    if (result == 0)
        result = state_load(&box->exec, box->ring, &manifest, err);
    checkpoint_unload(&manifest);
    return result;
}

static int move_step(struct tiny_box *box, struct err *err)
{
    struct checkpoint_reader reader;
    int result = checkpoint_reader_open(&reader, box->run_dir, &model.layout, err);
    if (result == 0)
        result = state_move(&box->exec, box->ring, &reader, err);
    checkpoint_reader_close(&reader);
    return result;
}

/* fn with every one of its transfers failing in turn; afterwards the commit of before is there. */
static uint32_t sweep(step_fn *fn, uint32_t placement, const char *name, bool commit_moves)
{
    struct tiny_box box;
    struct err err;
    struct nth nth = {0};
    open_box(&box, placement, name, true);
    uint8_t *image = randomize(&box, 1);
    for (;; nth.at++) {
        nth.seen = 0;
        ring_set_fault(fail_nth, &nth);
        int result = fn(&box, &err);
        ring_set_fault(NULL, NULL);
        if (nth.seen <= nth.at) {
            must(result, &err);
            break;
        }
        assert_int_equal(result, ERR_SYSTEM);
        assert_int_equal(nth.seen, nth.at + 1); /* the first failure ends it */
        if (!strstr(err.message, box.state_path) || !strstr(err.message, " at offset "))
            fail_msg("no file and offset: %s", err.message);
        struct checkpoint_manifest manifest;
        must(checkpoint_load(&manifest, box.run_dir, &model.layout, &err), &err);
        assert_int_equal(manifest.step, 1);
        checkpoint_unload(&manifest);
    }
    tiny_box_close(&box);
    if (!commit_moves) {
        open_box(&box, placement, name, false);
        load(&box);
        check_state(&box, image);
        tiny_box_close(&box);
    }
    mem_free(image);
    return nth.at;
}

static void test_failed_transfers(void **state)
{
    (void)state;
    /* The last argument: whether what succeeds in the end is a commit of its own. */
    assert_int_equal(sweep(create_step, 0, "fail-create", false), model.layout.chunk_count);
    assert_int_equal(sweep(create_step, 5, "fail-create-5", false), 0);
    assert_int_equal(sweep(move_step, 2, "fail-move", false), model.layout.chunk_count);
    assert_int_equal(sweep(commit_step, 2, "fail-commit", true), model.layout.chunk_count);
    assert_int_equal(sweep(commit_step, 5, "fail-commit-5", true),
                     model.layout.chunk_count * PLANE_COUNT);
    assert_int_equal(sweep(load_step, 4, "fail-load", false), model.layout.chunk_count * 3);
}

static void test_damage_is_found_when_loading(void **state)
{
    (void)state;
    struct tiny_box box;
    struct err err;
    open_box(&box, 5, "damaged", true);
    uint8_t *image = randomize(&box, 1);
    int fd = open(box.state_path, O_RDWR);
    assert_true(fd >= 0);
    for (uint32_t i = 0; i < model.layout.chunk_count * PLANE_COUNT; i += 3) {
        const struct layout_chunk *chunk = &model.layout.chunks[i / PLANE_COUNT];
        enum plane plane = i % PLANE_COUNT;
        uint64_t at = chunk->offset + layout_plane_offset(&model.layout, chunk->count, plane),
                 inside = i * 40 + 1;
        char expected[64];
        uint8_t byte = image[at + inside] ^ 0x80;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)(at + inside)), 1);
        assert_int_equal(load_step(&box, &err), ERR_CORRUPT);
        snprintf(expected, sizeof(expected), "at offset %llu the", (unsigned long long)at);
        if (!strstr(err.message, expected) || !strstr(err.message, box.state_path))
            fail_msg("not '%s': %s", expected, err.message);
        byte ^= 0x80;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)(at + inside)), 1);
        must(load_step(&box, &err), &err);
    }
    close(fd);
    check_state(&box, image);
    mem_free(image);
    tiny_box_close(&box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_created),
        cmocka_unit_test(test_created_from_weights),
        cmocka_unit_test(test_refused_weights),
        cmocka_unit_test(test_loaded),
        cmocka_unit_test(test_moved),
        cmocka_unit_test(test_committed_bytes),
        cmocka_unit_test(test_failed_transfers),
        cmocka_unit_test(test_damage_is_found_when_loading),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
