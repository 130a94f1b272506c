/*
 * Property: a rehearsal's steps are steps: every chunk that is not on the imagined device is
 * updated in each of them, with gradients that are not zero, its sums hold, weights stay finite,
 * and the drive moves what the plan says; the device has no arena, and no file has a name. Method:
 * a small model in many chunks, in a budget that only just works and in one without end; moments
 * after one, two and three updates differ everywhere.
 */
#include "core/hash.h"
#include "core/mem.h"
#include "io/ring.h"
#include "offload/rehearsal.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <dirent.h>
#include <math.h>
#include <string.h>

#define STEPS 3

static void require(int result, const struct err *err)
{
    if (result != 0)
        fail_msg("%s", err->message);
}

static void check_folder_is_empty(const char *path)
{
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        assert_true(entry->d_name[0] == '.');
    closedir(dir);
}

/* A plane as it is now, in RAM or on the drive, into `to`; its sum holds where the step has made
 * one. */
static void read_plane(struct rehearsal *r, uint32_t chunk, uint32_t plane, void *to)
{
    struct err err;
    const struct layout *layout = r->place.spec.layout;
    uint64_t bytes = layout_plane_bytes(layout, layout->chunks[chunk].count, plane);
    uint32_t i = chunk * PLANE_COUNT + plane;
    if (plane < r->place.resident[chunk]) {
        memcpy(to, exec_cell(&r->exec, r->memory.plane_ram.first + i), bytes);
        return;
    }
    struct tier_location at = tier_read_at(&r->tier, r->memory.plane_nvme.first + i);
    require(tier_transfer(&r->tier, r->ring, false, at, to, bytes, &err), &err);
    assert_int_equal(tier_plane_sum(layout, chunk, plane, to), r->tier.plane_sums[i]);
}

/* The second moments: above zero from the first update on, another value in every step. */
static void check_moments(struct rehearsal *r, uint64_t *hashes)
{
    const struct layout *layout = r->place.spec.layout;
    float *v = mem_alloc_aligned(IO_ALIGN, layout->chunk_count_max * sizeof(*v));
    assert_true(r->place.choice.knob[KNOB_DEVICE] < layout->chunk_count);
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        if (r->place.on_device[c])
            continue;
        read_plane(r, c, PLANE_V, v);
        for (uint64_t i = 0; i < layout->chunks[c].real_count; i++)
            assert_true(isfinite(v[i]) && v[i] > 0);
        uint64_t hash = hash_bytes(v, layout->chunks[c].count * sizeof(*v), 0);
        assert_int_not_equal(hash, hashes[c]);
        hashes[c] = hash;
    }
    mem_free(v);
}

static void rehearse(struct place_spec *spec, const struct tiny_model *model)
{
    struct err err;
    struct rehearsal r;
    struct plan_totals totals;
    struct sched_result said;
    const char *folder = scratch_path("rehearsal");
    uint64_t *hashes = mem_alloc(model->layout.chunk_count, sizeof(*hashes));
    require(file_make_dirs(folder, &err), &err);
    require(rehearsal_plan(&r, spec, &err), &err);
    check_folder_is_empty(folder);
    require(rehearsal_open(&r, &model->tensors, folder, 1, &err), &err);
    check_folder_is_empty(folder);
    assert_int_equal(r.exec.vram.bytes, 0);
    plan_total(&r.steady, &totals);
    rehearsal_predict(&r, NULL, &said);
    for (int step = 0; step < STEPS; step++) {
        struct sched_result result;
        rehearsal_step(&r, &result);
        for (uint32_t l = 0; l < LANE_COUNT; l++) {
            assert_int_equal(result.bytes[l],
                             totals.bytes[PHASE_FORWARD][l] + totals.bytes[PHASE_BACKWARD][l]);
            assert_int_equal(said.bytes[l], result.bytes[l]);
        }
        check_moments(&r, hashes);
    }
    rehearsal_close(&r);
    mem_free(hashes);
}

static void make_spec(struct place_spec *spec, const struct tiny_model *model,
                      struct profile *profile, enum precision precision)
{
    profile_init(profile, 2);
    profile->device.is_cpu = false;
    tiny_spec(spec, model);
    spec->precision = precision;
    spec->vram_budget = 2 * MIB; /* less than the state */
    spec->profile = profile;
}

static void test_steps(void **state)
{
    (void)state;
    for (enum precision precision = 0; precision < 2; precision++) {
        struct tiny_model model;
        struct place_spec spec;
        struct profile profile;
        struct rehearsal refused;
        struct err err;
        tiny_model_init(&model, 3, 64, 300, 8192, 8192);
        make_spec(&spec, &model, &profile, precision);
        rehearse(&spec, &model);
        spec.ram_budget = MIB;
        assert_int_equal(rehearsal_plan(&refused, &spec, &err), ERR_INPUT);
        rehearsal_close(&refused);
        spec.ram_budget = tiny_flag(err.message, "--ram-budget") + MIB;
        rehearse(&spec, &model);
        tiny_model_deinit(&model);
    }
}

/* Where nothing can be opened nothing is left, and closing is legal. */
static void test_no_tier(void **state)
{
    (void)state;
    struct tiny_model model;
    struct place_spec spec;
    struct profile profile;
    struct rehearsal r;
    struct err err;
    tiny_model_init(&model, 2, 64, 300, 8192, 8192);
    make_spec(&spec, &model, &profile, PRECISION_BF16);
    require(rehearsal_plan(&r, &spec, &err), &err);
    assert_true(rehearsal_open(&r, &model.tensors, scratch_path("missing"), 1, &err) < 0);
    assert_non_null(strstr(err.message, "missing"));
    rehearsal_close(&r);
    tiny_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_no_tier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
