/*
 * profile: the defaults are a valid machine; speeds are exact at the points, lie between
 * neighbours and are monotone there, stay at the outermost beyond, and fall back to the other
 * precision; a machine twice as fast is that in every figure. The points of the tests have speeds
 * that are no round numbers, so that a mix-up of two of them shows.
 */
#include "tests/shared/check.h"
#include "offload/profile.h"
#include "offload/profile_file.h"
#include <math.h>
#include <string.h>

static void add_point(struct profile *profile, enum precision precision, uint32_t channels,
                      uint32_t rows, double flops)
{
    struct profile_point *point = &profile->device.points[profile->device.point_count++];
    *point = (struct profile_point){precision, channels, rows, {0}};
    for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++)
        point->flops_per_s[k] = flops * (1 + k);
}

/* Two widths by three sizes in bf16, and nothing in fp32. */
static struct profile grid(void)
{
    struct profile profile;
    profile_init(&profile, 4);
    profile.device.point_count = 0;
    static const double flops[2][3] = {{1.1e12, 2.3e12, 2.9e12}, {3.1e12, 5.3e12, 7.7e12}};
    for (uint32_t c = 0; c < 2; c++)
        for (uint32_t r = 0; r < 3; r++)
            add_point(&profile, PRECISION_BF16, c ? 4096 : 512, 64u << (4 * r), flops[c][r]);
    return profile;
}

static void test_defaults(void **state)
{
    (void)state;
    for (uint32_t cores = 1; cores <= 256; cores *= 2) {
        struct profile profile;
        struct err err = {0};
        profile_init(&profile, cores);
        assert_int_equal(profile_check(&profile, "defaults", &err), 0);
        assert_false(profile.measured);
        assert_true(profile.device.is_cpu);
        assert_int_equal(profile.cpu.cores, cores);
    }
}

static void test_exact_at_points(void **state)
{
    (void)state;
    struct profile profile = grid();
    for (uint32_t i = 0; i < profile.device.point_count; i++) {
        const struct profile_point *p = &profile.device.points[i];
        for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++) {
            double got = profile_flops(&profile, PRECISION_BF16, k, p->channels, p->rows);
            assert_true(fabs(got / p->flops_per_s[k] - 1) < 1e-12);
        }
    }
}

/* Every neighbouring pair of shapes on a fine grid, along both axes. */
static void test_monotone_between(void **state)
{
    (void)state;
    struct profile profile = grid();
    enum profile_kernel kernel = PROFILE_HEAD_BACKWARD;
    for (uint32_t channels = 512; channels <= 4096; channels += 128) {
        for (uint32_t rows = 64; rows < 16384; rows += rows / 16) {
            double here = profile_flops(&profile, PRECISION_BF16, kernel, channels, rows);
            double longer =
                profile_flops(&profile, PRECISION_BF16, kernel, channels, rows + rows / 16);
            double wider = profile_flops(&profile, PRECISION_BF16, kernel, channels + 128, rows);
            assert_true(longer >= here * (1 - 1e-12));
            assert_true(wider >= here * (1 - 1e-12));
            assert_true(here >= 1.1e12 * 6 * (1 - 1e-12) && here <= 7.7e12 * 6 * (1 + 1e-12));
        }
    }
    /* Half way on the logarithm of rows, times are half way: 1/f = (1/1.1 + 1/2.3) / 2. */
    double middle = profile_flops(&profile, PRECISION_BF16, PROFILE_BLOCK_FORWARD, 512, 256);
    assert_true(fabs(middle / (2 / (1 / 1.1e12 + 1 / 2.3e12)) - 1) < 1e-12);
}

static void test_clamped_beyond(void **state)
{
    (void)state;
    struct profile profile = grid();
    enum profile_kernel kernel = PROFILE_BLOCK_FORWARD;
    static const struct {
        uint32_t channels, rows;
        double flops;
    } cases[] = {{32, 1, 1.1e12},        {512, 1, 1.1e12},        {32, 64, 1.1e12},
                 {65536, 64, 3.1e12},    {512, 1u << 30, 2.9e12}, {1, 1u << 30, 2.9e12},
                 {65536, 65536, 7.7e12}, {4096, 16385, 7.7e12}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        double got =
            profile_flops(&profile, PRECISION_BF16, kernel, cases[i].channels, cases[i].rows);
        assert_true(fabs(got / cases[i].flops - 1) < 1e-12);
    }
    profile.device.point_count = 1;
    assert_true(fabs(profile_flops(&profile, PRECISION_BF16, kernel, 9999, 7) / 1.1e12 - 1) <
                1e-12);
}

static void test_other_precision(void **state)
{
    (void)state;
    struct profile profile = grid();
    enum profile_kernel kernel = PROFILE_ATTENTION_FORWARD;
    double bf16 = profile_flops(&profile, PRECISION_BF16, kernel, 1000, 1000);
    double fp32 = profile_flops(&profile, PRECISION_FP32, kernel, 1000, 1000);
    assert_true(fabs(fp32 / bf16 - 0.5) < 1e-12);
    for (uint32_t i = 0; i < profile.device.point_count; i++)
        profile.device.points[i].precision = PRECISION_FP32;
    assert_true(profile_flops(&profile, PRECISION_BF16, kernel, 1000, 1000) == bf16);
    /* Points of the other precision do not count where there is one of the right one. */
    add_point(&profile, PRECISION_BF16, 64, 64, 13e12);
    assert_true(
        fabs(profile_flops(&profile, PRECISION_BF16, PROFILE_BLOCK_FORWARD, 4096, 9) / 13e12 - 1) <
        1e-12);
}

/* Every rate doubles and every time halves; half as fast again, it is the same machine bit for bit
 * (factors of two round nothing). */
static void test_scale(void **state)
{
    (void)state;
    struct profile profile = grid(), before = profile;
    profile.device.copy_latency_s = before.device.copy_latency_s = 1e-5;
    profile_scale(&profile, 2);
    assert_true(profile.cpu.optimizer_parameters_per_s ==
                2 * before.cpu.optimizer_parameters_per_s);
    assert_true(profile.cpu.join_parameters_per_s == 2 * before.cpu.join_parameters_per_s);
    assert_true(profile.cpu.checksum_bytes_per_s == 2 * before.cpu.checksum_bytes_per_s);
    assert_true(profile.cpu.cached_checksum_bytes_per_s ==
                2 * before.cpu.cached_checksum_bytes_per_s);
    assert_true(profile.cpu.copy_bytes_per_s == 2 * before.cpu.copy_bytes_per_s);
    assert_true(profile.cpu.launch_s == before.cpu.launch_s / 2);
    assert_true(profile.ram.bytes_per_s == 2 * before.ram.bytes_per_s);
    assert_true(profile.device.stream_bytes_per_s == 2 * before.device.stream_bytes_per_s);
    assert_true(profile.device.h2d_bytes_per_s == 2 * before.device.h2d_bytes_per_s);
    assert_true(profile.device.d2h_bytes_per_s == 2 * before.device.d2h_bytes_per_s);
    assert_true(profile.device.h2d_both_bytes_per_s == 2 * before.device.h2d_both_bytes_per_s);
    assert_true(profile.device.d2h_both_bytes_per_s == 2 * before.device.d2h_both_bytes_per_s);
    assert_true(profile.device.copy_latency_s == before.device.copy_latency_s / 2);
    assert_true(profile.device.launch_s == before.device.launch_s / 2);
    assert_true(profile.ssd.read_bytes_per_s == 2 * before.ssd.read_bytes_per_s);
    assert_true(profile.ssd.write_bytes_per_s == 2 * before.ssd.write_bytes_per_s);
    assert_true(profile.ssd.mixed_read_bytes_per_s == 2 * before.ssd.mixed_read_bytes_per_s);
    assert_true(profile.ssd.mixed_write_bytes_per_s == 2 * before.ssd.mixed_write_bytes_per_s);
    assert_true(profile.ssd.sustained_write_bytes_per_s ==
                2 * before.ssd.sustained_write_bytes_per_s);
    assert_true(profile.ssd.read_latency_s == before.ssd.read_latency_s / 2);
    assert_true(profile.ssd.write_latency_s == before.ssd.write_latency_s / 2);
    for (uint32_t i = 0; i < before.device.point_count; i++)
        for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++)
            assert_true(profile.device.points[i].flops_per_s[k] ==
                        2 * before.device.points[i].flops_per_s[k]);
    profile_scale(&profile, 0.5);
    assert_memory_equal(&profile, &before, sizeof(profile));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),         cmocka_unit_test(test_exact_at_points),
        cmocka_unit_test(test_monotone_between), cmocka_unit_test(test_clamped_beyond),
        cmocka_unit_test(test_other_precision),  cmocka_unit_test(test_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
