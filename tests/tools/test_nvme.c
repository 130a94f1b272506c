/*
 * What --nvme means: folders are told apart and made absolute, a comma in the name of a folder that
 * is there is no list; drives are known by their mount; shares follow what was measured of each,
 * and nothing where one is unknown; the profile becomes that of the drives that are used; the
 * budget is what every drive has room for. Method: folders on the scratch drive and on the root's
 * own mounts (/proc is one on every Linux).
 */
#include "tools/nvme.h"

#include "tests/shared/check.h"
#include "tests/shared/scratch.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct nvme_list list;

static void parse(const char *text)
{
    struct err err;
    if (nvme_parse(&list, text, &err) != 0)
        fail_msg("%s", err.message);
}

static void test_lists(void **state)
{
    (void)state;
    struct err err;
    parse(NULL);
    assert_int_equal(list.count, 0);
    parse("/somewhere/new");
    assert_int_equal(list.count, 1);
    assert_string_equal(list.dir[0], "/somewhere/new");
    assert_string_equal(list.mount[0], "/");
    parse("/a,/b/c,/d");
    assert_int_equal(list.count, 3);
    assert_string_equal(list.dir[1], "/b/c");
    assert_string_equal(list.text, "/a,/b/c,/d");
    assert_int_equal(chdir(scratch_dir()), 0);
    parse("here,/there");
    assert_true(list.dir[0][0] == '/' && strstr(list.dir[0], "/here"));
    char *again = strdup(list.text);
    assert_non_null(again);
    parse(again);
    assert_string_equal(list.text, again);
    free(again);
    assert_int_equal(mkdir("with,comma", 0777), 0);
    parse("with,comma");
    assert_int_equal(list.count, 1);
    static const char *const wrong[] = {"",    ",",      "/a,",
                                        ",/a", "/a,,/b", "/1,/2,/3,/4,/5,/6,/7,/8,/9"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        assert_int_equal(nvme_parse(&list, wrong[i], &err), ERR_USAGE);
}

static void test_mounts(void **state)
{
    (void)state;
    parse("/proc/sys/kernel,/proc/not/there,/");
    assert_string_equal(list.mount[0], "/proc");
    assert_string_equal(list.mount[1], "/proc");
    assert_string_equal(list.mount[2], "/");
}

static struct profile measured(void)
{
    struct profile p;
    profile_init(&p, 4);
    p.ssd.count = 1;
    p.drive_count = 2;
    p.drives[0] = (struct profile_drive){"/proc", 4e9, 3e9, 2e9, 1e9, 5e8};
    p.drives[1] = (struct profile_drive){"/", 2e9, 2e9, 5e8, 5e8, 3e8};
    return p;
}

static void test_shares(void **state)
{
    (void)state;
    struct profile p = measured();
    parse("/proc,/");
    struct train_nvme nvme = nvme_folders(&list);
    nvme_share(&list, &p, &nvme);
    assert_int_equal(nvme.count, 2);
    assert_int_equal(nvme.share[0], 750);
    assert_int_equal(nvme.share[1], 250);
    /* Two folders of one drive share what it gives. */
    parse("/proc/1,/proc/2,/");
    nvme = nvme_folders(&list);
    nvme_share(&list, &p, &nvme);
    assert_int_equal(nvme.share[0], 375);
    assert_int_equal(nvme.share[1], 375);
    assert_int_equal(nvme.share[2], 250);
    p.drive_count = 1;
    parse("/proc,/");
    nvme = nvme_folders(&list);
    nvme_share(&list, &p, &nvme);
    assert_int_equal(nvme.share[0], nvme.share[1]);
}

static void test_profile(void **state)
{
    (void)state;
    struct profile p = measured();
    parse("/proc,/");
    nvme_profile(&list, &p);
    assert_int_equal(p.ssd.count, 2);
    assert_true(p.ssd.read_bytes_per_s == 3e9 && p.ssd.mixed_write_bytes_per_s == 0.75e9);
    assert_true(p.ssd.sustained_write_bytes_per_s == 4e8);
    parse("/proc/1,/proc/2");
    nvme_profile(&list, &p);
    assert_int_equal(p.ssd.count, 1);
    assert_true(p.ssd.read_bytes_per_s == 4e9);
    /* Unknown: alike, as fast as what is known. */
    p = measured();
    double before = p.ssd.read_bytes_per_s;
    p.drive_count = 1;
    parse("/proc,/");
    nvme_profile(&list, &p);
    assert_int_equal(p.ssd.count, 2);
    assert_true(p.ssd.read_bytes_per_s == before);
    p = measured();
    parse(NULL);
    nvme_profile(&list, &p);
    assert_int_equal(p.ssd.count, 1);
}

static uint64_t free_bytes(const struct stripe_files *held, uint32_t first_share)
{
    struct err err;
    uint64_t bytes;
    struct train_nvme nvme = nvme_folders(&list);
    nvme.share[0] = first_share;
    assert_int_equal(nvme_free_bytes(&list, &nvme, held, &bytes, &err), 0);
    return bytes;
}

static void test_room(void **state)
{
    (void)state;
    struct stripe_files none = {0}, held;
    struct err err;
    /* /proc has no room, whatever its share. */
    parse("/proc,/");
    assert_int_equal(free_bytes(&none, 1), 0);
    assert_int_equal(free_bytes(&none, 500), 0);
    /* Two folders on one drive have the room of one. */
    parse(scratch_dir());
    uint64_t alone = free_bytes(&none, 1);
    assert_true(alone > 0);
    char two[2 * FILE_PATH_MAX];
    snprintf(two, sizeof(two), "%s/a,%s/b", scratch_dir(), scratch_dir());
    parse(two);
    uint64_t both = free_bytes(&none, 7);
    assert_true(both <= alone && both > alone / 2);
    /* What is held already is room too; the machine's other programs may take some meanwhile. */
    parse(scratch_dir());
    assert_int_equal(stripe_files_one(&held, scratch_write("held", ""), &err), 0);
    int fd = open(held.path[0], O_WRONLY);
    assert_true(fd >= 0 && posix_fallocate(fd, 0, (off_t)(256 * MIB)) == 0);
    close(fd);
    alone = free_bytes(&none, 1);
    assert_true(free_bytes(&held, 1) > alone + 128 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),  cmocka_unit_test(test_mounts),
        cmocka_unit_test(test_shares), cmocka_unit_test(test_profile),
        cmocka_unit_test(test_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
