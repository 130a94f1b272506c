/*
 * Properties: what a drive asks for is asked of the kernel and told; a drive whose alignment the
 * program's transfers do not have is refused with a sentence that says so. Method: a file in the
 * scratch folder is asked about, which must agree with a transfer that is aligned as told; drives
 * that this machine does not have are made up.
 */
#include "core/base.h"
#include "io/drive.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <string.h>
#include <unistd.h>

static void test_what_is_told_is_enough(void **state)
{
    (void)state;
    static uint8_t memory[4 * IO_ALIGN] __attribute__((aligned(4096)));
    struct drive drive;
    struct err err;
    int fd;
    assert_int_equal(file_open_direct(&fd, scratch_path("drive"), true, true, &err), 0);
    drive_ask(&drive, fd);
    assert_int_equal(drive_check(&drive, "drive", &err), 0);
    if (drive.alignment_known && drive.offset_align > 0) {
        uint8_t *buffer = memory + drive.memory_align;
        ssize_t bytes = (ssize_t)drive.offset_align;
        assert_int_equal(pwrite(fd, buffer, (size_t)bytes, 2 * bytes), bytes);
        assert_int_equal(pread(fd, buffer, (size_t)bytes, 2 * bytes), bytes);
    }
    close(fd);
}

static void test_other_alignments_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t memory_align, offset_align;
        bool refused;
    } drives[] = {{0, 0, false},      {1, 512, false},    {4, 4096, false}, {4096, 4096, false},
                  {8192, 4096, true}, {512, 16384, true}, {512, 520, true}, {4096, 65536, true}};
    for (size_t i = 0; i < ARRAY_COUNT(drives); i++) {
        struct drive drive = {true, drives[i].memory_align, drives[i].offset_align, 0};
        struct err err;
        int result = drive_check(&drive, "/mnt/tape/state.bin", &err);
        assert_int_equal(result, drives[i].refused ? ERR_INPUT : 0);
        if (!result)
            continue;
        assert_non_null(strstr(err.message, "/mnt/tape/state.bin"));
        assert_non_null(strstr(err.message, "aligned to 4096"));
        assert_non_null(strstr(err.message, "another drive"));
    }
}

static void test_notes(void **state)
{
    (void)state;
    static const struct {
        struct drive drive;
        const char *says[2];
    } notes[] = {
        {{true, 4, 512, DRIVE_POLLING_NO},
         {"4 bytes in memory and 512 in the file", "no polling: the drive has no poll queues"}},
        {{true, 0, 0, DRIVE_POLLING_YES}, {"page cache", "though the drive has poll queues"}},
        {{false, 0, 0, DRIVE_POLLING_UNKNOWN}, {"is not told", "it is not known"}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(notes); i++) {
        char text[DRIVE_NOTE_MAX];
        drive_note(&notes[i].drive, text);
        assert_true(strlen(text) < sizeof(text) - 1);
        for (size_t s = 0; s < ARRAY_COUNT(notes[i].says); s++)
            if (!strstr(text, notes[i].says[s]))
                fail_msg("'%s' does not say '%s'", text, notes[i].says[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_told_is_enough),
        cmocka_unit_test(test_other_alignments_are_refused),
        cmocka_unit_test(test_notes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
