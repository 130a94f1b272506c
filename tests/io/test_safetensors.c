/*
 * Property: what is written is read back bit for bit, in pieces of any size, from one file or
 * several; and a file that is anything else than a well-formed one is refused with a sentence,
 * whatever its bytes. Method: files made here byte by byte, with each rule of the format broken in
 * turn; then many thousands of damaged headers (bytes changed, cut, doubled) that must neither
 * crash nor read beyond the file (asan watches) nor claim memory beyond a bound (the heap's count
 * watches).
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "tests/shared/check.h"
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[FILE_PATH_MAX];
static char path[FILE_PATH_MAX + 32];

static int setup(void **state)
{
    (void)state;
    const char *parent = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/var/tmp";
    snprintf(dir, sizeof(dir), "%s/spillway-test-safetensors-XXXXXX", parent);
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[FILE_PATH_MAX + 32];
    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    return system(command);
}

/* Writes a file of header length, header and data without any sync: tests write thousands. */
static void put_bytes(const char *to, uint64_t claimed, const void *header, size_t header_bytes,
                      const void *data, size_t data_bytes)
{
    struct err err;
    uint8_t prefix[8];
    for (size_t i = 0; i < 8; i++)
        prefix[i] = (uint8_t)(claimed >> (8 * i));
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    assert_int_equal(file_write_all(fd, prefix, 8, to, &err), 0);
    assert_int_equal(file_write_all(fd, header, header_bytes, to, &err), 0);
    assert_int_equal(file_write_all(fd, data, data_bytes, to, &err), 0);
    close(fd);
}

static void put(const char *to, const char *header, const void *data, size_t data_bytes)
{
    put_bytes(to, strlen(header), header, strlen(header), data, data_bytes);
}

static void refuses(const char *what, const char *part)
{
    struct safetensors *file;
    struct err err = {0};
    int result = safetensors_open(&file, what, &err);
    assert_true(result < 0 && result == err.code);
    assert_null(file);
    assert_null(strchr(err.message, '\n'));
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, part);
}

static struct safetensors *opens(const char *what)
{
    struct safetensors *file;
    struct err err;
    if (safetensors_open(&file, what, &err) < 0)
        fail_msg("%s", err.message);
    return file;
}

/* ---- Round trip ---- */

static const struct safetensors_tensor shapes[] = {
    {.name = "wte.weight", .shape = {7, 5}, .dim_count = 2, .element_count = 35},
    {.name = "scalar", .dim_count = 0, .element_count = 1},
    {.name = "nothing", .shape = {3, 0}, .dim_count = 2, .element_count = 0},
    {.name = "h.0.\"quoted\\\"", .shape = {1, 2, 3, 4}, .dim_count = 4, .element_count = 24},
};
#define VALUE_COUNT (35 + 1 + 0 + 24)

static float value_at(size_t i)
{
    /* Any bits: the format does not care whether a float is a number. */
    return float_from_bits((uint32_t)rng_u64(5, 1, i));
}

static void write_file(const char *to, size_t step)
{
    struct safetensors_writer *writer;
    struct err err;
    float values[VALUE_COUNT];
    for (size_t i = 0; i < VALUE_COUNT; i++)
        values[i] = value_at(i);
    assert_int_equal(safetensors_writer_open(&writer, to, shapes, ARRAY_COUNT(shapes), &err), 0);
    assert_false(file_exists(to)); /* until the close */
    for (size_t i = 0; i < VALUE_COUNT; i += step)
        assert_int_equal(
            safetensors_writer_add(writer, values + i, MIN(step, VALUE_COUNT - i), &err), 0);
    assert_int_equal(safetensors_writer_close(writer, &err), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    const size_t steps[] = {1, 7, VALUE_COUNT};
    for (size_t s = 0; s < ARRAY_COUNT(steps); s++) {
        struct err err;
        write_file(path, steps[s]);
        struct safetensors *file = opens(s == 0 ? dir : path);
        assert_int_equal(safetensors_count(file), ARRAY_COUNT(shapes));
        size_t base = 0;
        for (size_t t = 0; t < ARRAY_COUNT(shapes); t++) {
            const struct safetensors_tensor *tensor = safetensors_find(file, shapes[t].name);
            assert_non_null(tensor);
            assert_int_equal(tensor->dim_count, shapes[t].dim_count);
            assert_int_equal(tensor->element_count, shapes[t].element_count);
            assert_memory_equal(tensor->shape, shapes[t].shape, sizeof(tensor->shape));
            for (size_t i = 0; i < tensor->element_count; i += steps[s]) {
                float values[VALUE_COUNT];
                size_t count = MIN(steps[s], tensor->element_count - i);
                assert_int_equal(safetensors_read(file, tensor, i, values, count, &err), 0);
                for (size_t j = 0; j < count; j++)
                    assert_int_equal(float_bits(values[j]), float_bits(value_at(base + i + j)));
            }
            assert_int_equal(safetensors_read(file, tensor, tensor->element_count, NULL, 0, &err),
                             0);
            base += tensor->element_count;
        }
        assert_null(safetensors_find(file, "wte"));
        assert_null(safetensors_find(file, ""));
        safetensors_close(file);
        assert_int_equal(unlink(path), 0);
    }
    safetensors_close(NULL);
}

static void test_data_is_aligned(void **state)
{
    (void)state;
    struct err err;
    char *data;
    size_t bytes;
    write_file(path, VALUE_COUNT);
    assert_int_equal(file_read_all(path, MIB, &data, &bytes, &err), 0);
    assert_int_equal((bytes - VALUE_COUNT * 4) % 8, 0);
    assert_non_null(strstr(data + 8, "\"__metadata__\""));
    assert_non_null(strstr(data + 8, "\"pt\""));
    mem_free(data);
}

/* ---- 16-bit values ---- */

/* The definition, in double: sign, exponent and fraction of IEEE binary16. */
static double half_value(uint16_t bits)
{
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31)
        magnitude = fraction == 0 ? INFINITY : NAN;
    return bits & 0x8000 ? -magnitude : magnitude;
}

static void test_every_16_bit_value(void **state)
{
    (void)state;
    static uint16_t all[65536];
    static float values[65536];
    for (uint32_t i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    const char *names[] = {"F16", "BF16"};
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        char header[200];
        struct err err;
        snprintf(header, sizeof(header),
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[65536],\"data_offsets\":[0,131072]}}",
                 names[k]);
        put(path, header, all, sizeof(all));
        struct safetensors *file = opens(path);
        const struct safetensors_tensor *tensor = safetensors_at(file, 0);
        /* In pieces of odd size, so that the widening in place meets every remainder. */
        for (size_t i = 0, count; i < 65536; i += count) {
            count = MIN(1 + i % 977, 65536 - i);
            assert_int_equal(safetensors_read(file, tensor, i, values + i, count, &err), 0);
        }
        for (uint32_t i = 0; i < 65536; i++) {
            double expected = k == 0 ? half_value((uint16_t)i) : float_from_bits(i << 16);
            if (isnan(expected))
                assert_true(isnan(values[i]));
            else
                assert_true(values[i] == (float)expected &&
                            !signbit(values[i]) == !signbit(expected));
        }
        safetensors_close(file);
    }
}

static void test_other_dtypes_are_listed_but_not_read(void **state)
{
    (void)state;
    struct err err;
    float value;
    put(path,
        "{\"mask\":{\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[4,8]},"
        "\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        "\0\0\200\77\1\1\1\1", 8);
    struct safetensors *file = opens(path);
    assert_string_equal(safetensors_at(file, 0)->name, "w"); /* in the order of the data */
    assert_int_equal(safetensors_read(file, safetensors_find(file, "w"), 0, &value, 1, &err), 0);
    assert_true(value == 1.0f);
    assert_int_equal(safetensors_read(file, safetensors_find(file, "mask"), 0, &value, 1, &err),
                     ERR_INPUT);
    assert_non_null(strstr(err.message, "mask"));
    safetensors_close(file);
}

/* ---- Several files ---- */

static void put_index(const char *text)
{
    struct err err;
    char index[FILE_PATH_MAX];
    assert_int_equal(file_join(index, dir, "model.safetensors.index.json", &err), 0);
    assert_int_equal(file_replace(index, text, strlen(text), &err), 0);
}

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static void test_index(void **state)
{
    (void)state;
    char first[FILE_PATH_MAX + 8], second[FILE_PATH_MAX + 8];
    struct err err;
    float values[2] = {0, 0};
    snprintf(first, sizeof(first), "%s/1.st", dir);
    snprintf(second, sizeof(second), "%s/2.st", dir);
    put(first, ONE("a"), "\0\0\200\77", 4);
    put(second, ONE("b"), "\0\0\0\100", 4);
    refuses(dir, "neither");
    put_index("{\"weight_map\":{\"a\":\"1.st\",\"b\":\"2.st\"}}");
    struct safetensors *file = opens(dir);
    assert_int_equal(safetensors_count(file), 2);
    assert_int_equal(safetensors_read(file, safetensors_find(file, "a"), 0, values, 1, &err), 0);
    assert_int_equal(safetensors_read(file, safetensors_find(file, "b"), 0, values + 1, 1, &err),
                     0);
    assert_true(values[0] == 1.0f && values[1] == 2.0f);
    safetensors_close(file);

    put(second, ONE("a"), "\0\0\0\100", 4);
    refuses(dir, "second definition");
    put_index("{\"weight_map\":{\"a\":\"../1.st\"}}");
    refuses(dir, "no name of a file");
    put_index("{\"weight_map\":{\"a\":7}}");
    refuses(dir, "no name of a file");
    put_index("{\"weight_map\":{\"a\":\"3.st\"}}");
    refuses(dir, "3.st");
    put_index("{\"weight_map\":{}}");
    refuses(dir, "names no files");
    put_index("[");
    refuses(dir, "index.json");
}

/* ---- Broken files ---- */

static void test_each_broken_rule(void **state)
{
    (void)state;
    const char data[16] = {0};
#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
    const struct {
        const char *header, *part;
    } cases[] = {
        {"{}", "no tensors"},
        {"[]", "no tensors"},
        {"", "safetensors"},
        {"{\"t\":", "safetensors"},
        {"{\"t\":3}", "dtype"},
        {TENSOR("\"F31\"", "[4]", "[0,16]"), "dtype"},
        {TENSOR("7", "[4]", "[0,16]"), "dtype"},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", "shape"},
        {TENSOR("\"F32\"", "[-4]", "[0,16]"), "whole number"},
        {TENSOR("\"F32\"", "[4.5]", "[0,16]"), "whole number"},
        {TENSOR("\"F32\"", "[\"4\"]", "[0,16]"), "whole number"},
        {TENSOR("\"F32\"", "[1,1,1,1,4]", "[0,16]"), "dimensions"},
        {TENSOR("\"F32\"", "[4294967296,4294967296]", "[0,16]"), "elements"},
        {TENSOR("\"F32\"", "[4611686018427387908]", "[0,16]"), "number of bytes"},
        {TENSOR("\"F32\"", "[3]", "[0,16]"), "number of bytes"},
        {TENSOR("\"F32\"", "[5]", "[0,20]"), "cut short"},
        {TENSOR("\"F32\"", "[4]", "[0,9223372036854775807]"), "cut short"},
        {TENSOR("\"F32\"", "[4]", "[16,0]"), "no range"},
        {TENSOR("\"F32\"", "[4]", "[-16,0]"), "no range"},
        {TENSOR("\"F32\"", "[4]", "[0]"), "no range"},
        {TENSOR("\"F32\"", "[4]", "[0,16,32]"), "no range"},
        {TENSOR("\"F32\"", "[4]", "7"), "no range"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         "also claims"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        put(path, cases[i].header, data, sizeof(data));
        refuses(path, cases[i].part);
    }
    put(path, TENSOR("\"F32\"", "[4]", "[0,16]"), data, sizeof(data)); /* and the whole one opens */
    safetensors_close(opens(path));
}

static void test_lengths_that_lie(void **state)
{
    (void)state;
    const char *header = ONE("a");
    const uint64_t claims[] = {strlen(header) + 5, 100000,         17 * MIB,
                               (uint64_t)1 << 62,  UINT64_MAX - 8, UINT64_MAX};
    uint64_t before = mem_heap_bytes();
    for (size_t i = 0; i < ARRAY_COUNT(claims); i++) {
        put_bytes(path, claims[i], header, strlen(header), "\0\0\200\77", 4);
        refuses(path, "header claims");
    }
    assert_true(mem_heap_bytes() <= before + MIB);
    for (size_t bytes = 0; bytes < 8; bytes++) {
        int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
        assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
        close(fd);
        refuses(path, "no header");
    }
    refuses("/dev/null", "no header");
    refuses("/nonexistent", "/nonexistent");
}

/* A file that is cut after it was opened is told with the byte where it ends. */
static void test_cut_while_open(void **state)
{
    (void)state;
    struct err err;
    float value;
    put(path, ONE("a"), "\0\0\200\77", 4);
    struct safetensors *file = opens(path);
    assert_int_equal(truncate(path, 10), 0);
    assert_int_equal(safetensors_read(file, safetensors_at(file, 0), 0, &value, 1, &err),
                     ERR_CORRUPT);
    assert_non_null(strstr(err.message, path));
    safetensors_close(file);
}

/* ---- Damaged headers, at random ---- */

static size_t damage(char *text, size_t bytes, size_t room, uint64_t seed)
{
    static const char likely[] = "{}[]\",:0123456789-e.\\utF\0 ";
    uint64_t rounds = 1 + rng_below(seed, 1, 0, 4);
    for (uint64_t r = 0; r < rounds; r++) {
        size_t at = rng_below(seed, 2, r, bytes), length = 1 + rng_below(seed, 3, r, 8);
        length = MIN(length, bytes - at);
        switch (rng_below(seed, 4, r, 4)) {
        case 0:
            text[at] = likely[rng_below(seed, 5, r, sizeof(likely))];
            break;
        case 1:
            text[at] = (char)rng_below(seed, 5, r, 256);
            break;
        case 2: /* cut a part out */
            memmove(text + at, text + at + length, bytes - at - length);
            bytes -= bytes > length ? length : 0;
            break;
        default: /* double a part */
            if (bytes + length > room)
                break;
            memmove(text + at + length, text + at, bytes - at);
            bytes += length;
        }
    }
    return bytes;
}

/* Whatever opens must be readable to its last element. */
static void open_and_read_all(void)
{
    struct safetensors *file;
    struct err err = {0};
    float values[64];
    if (safetensors_open(&file, path, &err) < 0) {
        assert_null(file);
        assert_true(err.message[0] != '\0' && strchr(err.message, '\n') == NULL);
        return;
    }
    for (size_t t = 0; t < safetensors_count(file); t++) {
        const struct safetensors_tensor *tensor = safetensors_at(file, t);
        assert_true(tensor->element_count <= 64);
        int result = safetensors_read(file, tensor, 0, values, tensor->element_count, &err);
        assert_true(result == 0 || result == ERR_INPUT);
    }
    safetensors_close(file);
}

static void test_damaged_headers(void **state)
{
    (void)state;
    const char whole[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"h.0.ln_1.bias\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[24,32]},"
        "\"h.0.attn.bias\":{\"dtype\":\"U8\",\"shape\":[1,1,2,2],\"data_offsets\":[32,36]}}";
    const char data[36] = {0};
    uint64_t before = mem_heap_bytes();
    for (uint64_t seed = 0; seed < 20000; seed++) {
        char text[512];
        memcpy(text, whole, sizeof(whole) - 1);
        size_t bytes = damage(text, sizeof(whole) - 1, sizeof(text), seed);
        put_bytes(path, bytes, text, bytes, data, sizeof(data));
        open_and_read_all();
    }
    assert_true(mem_heap_bytes() <= before + MIB);
}

/* ---- Writers that fail ---- */

static void test_unfinished_and_aborted(void **state)
{
    (void)state;
    struct safetensors_writer *writer;
    struct err err;
    const float value = 1;
    char tmp_path[FILE_PATH_MAX + 64];
    snprintf(tmp_path, sizeof(tmp_path), "%s.tmp", path);
    assert_int_equal(safetensors_writer_open(&writer, path, shapes, ARRAY_COUNT(shapes), &err), 0);
    assert_int_equal(safetensors_writer_add(writer, &value, 1, &err), 0);
    assert_int_equal(safetensors_writer_close(writer, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "missing"));
    assert_false(file_exists(path) || file_exists(tmp_path));
    assert_int_equal(safetensors_writer_open(&writer, path, shapes, ARRAY_COUNT(shapes), &err), 0);
    assert_true(file_exists(tmp_path));
    safetensors_writer_abort(writer);
    safetensors_writer_abort(NULL);
    assert_false(file_exists(path) || file_exists(tmp_path));
    assert_true(safetensors_writer_open(&writer, "/nonexistent/x", shapes, 1, &err) < 0);
    assert_null(writer);
}

/* A limit on file sizes makes the write that crosses it fail. */
static int write_under_limit(rlim_t limit_bytes)
{
    struct rlimit limit = {.rlim_cur = limit_bytes, .rlim_max = RLIM_INFINITY};
    struct safetensors_writer *writer;
    struct err err;
    float values[VALUE_COUNT] = {0};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    if (safetensors_writer_open(&writer, path, shapes, ARRAY_COUNT(shapes), &err) < 0)
        return writer == NULL ? 1 : 99;
    for (size_t i = 0; i < VALUE_COUNT; i++)
        if (safetensors_writer_add(writer, values, 1, &err) < 0) {
            safetensors_writer_abort(writer);
            return 1;
        }
    return safetensors_writer_close(writer, &err) == 0 ? 0 : 98;
}

static void test_writer_fails_at_each_place(void **state)
{
    (void)state;
    char *whole;
    size_t whole_bytes;
    struct err err;
    char tmp_path[FILE_PATH_MAX + 64];
    snprintf(tmp_path, sizeof(tmp_path), "%s.tmp", path);
    write_file(path, VALUE_COUNT);
    assert_int_equal(file_read_all(path, MIB, &whole, &whole_bytes, &err), 0);
    mem_free(whole);
    for (size_t n = 0; n <= whole_bytes;
         n += n + 3 > whole_bytes && n < whole_bytes ? whole_bytes - n : 3) {
        int status;
        unlink(path);
        pid_t child = fork();
        if (child == 0)
            _exit(write_under_limit(n));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), n < whole_bytes ? 1 : 0);
        assert_int_equal(file_exists(path), n == whole_bytes);
        assert_false(file_exists(tmp_path));
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_data_is_aligned),
        TEST(test_every_16_bit_value),
        TEST(test_other_dtypes_are_listed_but_not_read),
        TEST(test_index),
        TEST(test_each_broken_rule),
        TEST(test_lengths_that_lie),
        TEST(test_cut_while_open),
        TEST(test_damaged_headers),
        TEST(test_unfinished_and_aborted),
        TEST(test_writer_fails_at_each_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
