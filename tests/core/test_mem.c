/*
 * mem: arenas are exact, aligned, zeroed, resident and not inherited; the heap's count rises by one
 * per allocation of any thread and not inside a bracket; the memory that is free is what the
 * kernel's files say, given here as a made-up /proc and /sys.
 */
#include "tests/shared/check.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/topo.h"
#include "tests/shared/scratch.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Arenas */

static uint64_t resident_pages(const struct mem_arena *arena)
{
    static unsigned char pages[65536];
    size_t count = arena->bytes / 4096;
    assert_true(count <= sizeof(pages));
    assert_int_equal(mincore(arena->base, arena->bytes, pages), 0);
    uint64_t resident = 0;
    for (size_t i = 0; i < count; i++)
        resident += pages[i] & 1;
    return resident;
}

static void check_arena(uint64_t bytes)
{
    struct err err;
    struct mem_arena arena;
    assert_int_equal(mem_arena_open(&arena, bytes, &err), 0);
    assert_int_equal(arena.bytes, round_up(bytes, 4096));
    assert_int_equal((uintptr_t)arena.base % (2 * MIB), 0);
    assert_int_equal(resident_pages(&arena), arena.bytes / 4096);
    for (uint64_t i = 0; i < arena.bytes; i += 509)
        assert_int_equal(arena.base[i], 0);
    assert_int_equal(arena.base[arena.bytes - 1], 0);
    memset(arena.base, 0xff, arena.bytes);
    mem_arena_close(&arena);
    assert_null(arena.base);
    mem_arena_close(&arena);
}

static void test_arena_sizes(void **state)
{
    (void)state;
    check_arena(1);
    check_arena(4096);
    check_arena(4097);
    check_arena(3 * MIB);
    check_arena(4 * MIB);
    check_arena(9 * MIB + 12288);
    check_arena(150 * MIB); /* prefaulted by several threads where there are cores */
    struct err err;
    struct mem_arena arena;
    assert_int_equal(mem_arena_open(&arena, 0, &err), 0);
    assert_null(arena.base);
    mem_arena_close(&arena);
}

static void test_arena_too_big_is_refused(void **state)
{
    (void)state;
    struct err err;
    struct mem_arena arena;
    assert_int_equal(mem_arena_open(&arena, (uint64_t)1 << 50, &err), ERR_INPUT);
    assert_null(arena.base);
    assert_non_null(strstr(err.message, "MiB"));
}

/* A forked child (an editor, a hook) must not pay for, or copy, what the trainer holds. */
static void test_arena_is_not_inherited(void **state)
{
    (void)state;
    struct err err;
    struct mem_arena arena;
    assert_int_equal(mem_arena_open(&arena, 8 * MIB, &err), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile uint8_t *)arena.base = 1;
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    mem_arena_close(&arena);
}

static void test_usage_sees_an_arena(void **state)
{
    (void)state;
    struct err err;
    struct mem_usage before, during, after;
    struct mem_arena arena;
    uint64_t bytes = 64 * MIB, slack = 4 * MIB;
    topo_open(); /* asked by the first arena, and a few MiB by itself */
    mem_usage_read(&before);
    assert_true(before.rss_bytes > 0 && before.rss_peak_bytes >= before.rss_bytes);
    assert_true(before.page_table_bytes > 0);
    assert_int_equal(mem_arena_open(&arena, bytes, &err), 0);
    mem_usage_read(&during);
    assert_in_range(during.rss_bytes - before.rss_bytes, bytes - slack, bytes + slack);
    mem_arena_close(&arena);
    mem_usage_read(&after);
    assert_true(after.rss_bytes < before.rss_bytes + slack);
    assert_true(after.rss_peak_bytes + slack >= during.rss_bytes);
}

/* The heap */

static void test_alloc(void **state)
{
    (void)state;
    uint8_t *bytes = mem_alloc(1000, 3);
    for (int i = 0; i < 3000; i++)
        assert_int_equal(bytes[i], 0);
    memset(bytes, 7, 3000);
    bytes = mem_realloc(bytes, 10000, 1);
    assert_true(bytes[0] == 7 && bytes[2999] == 7);
    mem_free(bytes);
    void *empty = mem_alloc(0, 8);
    assert_non_null(empty);
    mem_free(empty);
    mem_free(NULL);
    char *copy = mem_strdup("text");
    assert_string_equal(copy, "text");
    mem_free(copy);
    for (uint64_t alignment = 8; alignment <= 4096; alignment *= 2) {
        uint8_t *aligned = mem_alloc_aligned(alignment, 100);
        assert_int_equal((uintptr_t)aligned % alignment, 0);
        assert_true(aligned[0] == 0 && aligned[99] == 0);
        mem_free(aligned);
    }
}

static void need_stats(void)
{
    if (!mem_heap_has_stats())
        skip(); /* the sanitizers' heap keeps none */
}

#define ALLOCATIONS 1000

static void *volatile keep;

/* Small and large, so that both of jemalloc's paths are counted. */
static void allocate_and_free(void)
{
    for (size_t i = 0; i < ALLOCATIONS; i++) {
        keep = mem_alloc(i % 2 ? 100 : 100000, 1);
        mem_free(keep);
    }
}

static void test_count_is_exact(void **state)
{
    (void)state;
    need_stats();
    uint64_t before = mem_heap_count();
    assert_int_equal(mem_heap_count(), before);
    allocate_and_free();
    assert_int_equal(mem_heap_count(), before + ALLOCATIONS);
}

static void test_bytes_balance(void **state)
{
    (void)state;
    need_stats();
    uint64_t before = mem_heap_bytes();
    void *held = mem_alloc(1000000, 1);
    assert_in_range(mem_heap_bytes() - before, 1000000, 1500000);
    mem_free(held);
    assert_int_equal(mem_heap_bytes(), before);
}

static void test_bracket(void **state)
{
    (void)state;
    need_stats();
    uint64_t before = mem_heap_count();
    mem_library_enter();
    allocate_and_free();
    mem_library_enter();
    allocate_and_free();
    mem_library_leave();
    allocate_and_free();
    void *library_memory = mem_alloc(5000, 1);
    mem_library_leave();
    assert_int_equal(mem_heap_count(), before);
    mem_free(library_memory);
    assert_int_equal(mem_heap_count(), before);
    allocate_and_free();
    assert_int_equal(mem_heap_count(), before + ALLOCATIONS);
}

static void *thread_of_library(void *argument)
{
    allocate_and_free();
    return argument;
}

static void *thread_without_bracket(void *argument)
{
    mem_own_thread();
    allocate_and_free();
    return argument;
}

static void *thread_with_bracket(void *argument)
{
    mem_own_thread();
    mem_library_enter();
    allocate_and_free();
    mem_library_leave();
    return argument;
}

static void run_thread(void *(*main_function)(void *))
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, main_function, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* A bracket is its thread's own. Starting a thread may allocate some of its own (its stack's
 * tables), which the first, uncounted, round shows. */
static void test_bracket_is_per_thread(void **state)
{
    (void)state;
    need_stats();
    uint64_t start = mem_heap_count();
    run_thread(thread_with_bracket);
    uint64_t thread_cost = mem_heap_count() - start;
    assert_true(thread_cost < 10);
    uint64_t before = mem_heap_count();
    mem_library_enter();
    run_thread(thread_without_bracket);
    mem_library_leave();
    assert_in_range(mem_heap_count() - before, ALLOCATIONS, ALLOCATIONS + thread_cost);
}

/* What a thread that some library has started allocates is the library's. */
static void test_threads_of_libraries_do_not_count(void **state)
{
    (void)state;
    need_stats();
    run_thread(thread_of_library); /* what starting a thread costs the first time */
    uint64_t before = mem_heap_count();
    run_thread(thread_of_library);
    uint64_t thread_cost = mem_heap_count() - before;
    assert_true(thread_cost < 10 && thread_cost < ALLOCATIONS);
    run_thread(thread_without_bracket);
    assert_true(mem_heap_count() - before >= ALLOCATIONS + thread_cost);
}

/* What is free */

static const char *made_up_machine(const char *name, const char *file, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s%s", name, file);
    scratch_write(path, text);
    return scratch_path(name);
}

#define MEMINFO "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:     800 kB\nBuffers: 1 kB\n"

static void test_available_without_cgroups(void **state)
{
    (void)state;
    const char *root = made_up_machine("plain", "/proc/meminfo", MEMINFO);
    assert_int_equal(mem_available_bytes_under(root), 800 * KIB);
    made_up_machine("plain", "/proc/self/cgroup", "0::/\n");
    assert_int_equal(mem_available_bytes_under(root), 800 * KIB);
}

static void test_available_cgroup_v2(void **state)
{
    (void)state;
    const char *root = made_up_machine("v2", "/proc/meminfo", MEMINFO);
    made_up_machine("v2", "/proc/self/cgroup", "0::/a/b/c\n");
    made_up_machine("v2", "/sys/fs/cgroup/a/b/c/memory.max", "max\n");
    assert_int_equal(mem_available_bytes_under(root), 800 * KIB);
    /* The parent's limit holds too; page cache can be dropped. */
    made_up_machine("v2", "/sys/fs/cgroup/a/b/memory.max", "409600\n");
    assert_int_equal(mem_available_bytes_under(root), 409600);
    made_up_machine("v2", "/sys/fs/cgroup/a/b/memory.current", "300000\n");
    assert_int_equal(mem_available_bytes_under(root), 109600);
    made_up_machine(
        "v2", "/sys/fs/cgroup/a/b/memory.stat",
        "anon 5\nfile 70000\ninactive_anon 9\ninactive_file 40000\nactive_file 20000\n");
    assert_int_equal(mem_available_bytes_under(root), 169600);
    made_up_machine("v2", "/sys/fs/cgroup/a/memory.max", "4096\n");
    made_up_machine("v2", "/sys/fs/cgroup/a/memory.current", "9000\n");
    assert_int_equal(mem_available_bytes_under(root), 0);
}

static void test_available_cgroup_v1(void **state)
{
    (void)state;
    const char *root = made_up_machine("v1", "/proc/meminfo", MEMINFO);
    made_up_machine("v1", "/proc/self/cgroup",
                    "12:cpu,cpuacct:/x\n4:hugetlb,memory:/job\n0::/unified\n");
    made_up_machine("v1", "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "500000\n");
    made_up_machine("v1", "/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100000\n");
    made_up_machine("v1", "/sys/fs/cgroup/memory/job/memory.stat",
                    "inactive_file 1\nactive_file 1\ntotal_inactive_file 3000\ntotal_active_file "
                    "2000\n");
    assert_int_equal(mem_available_bytes_under(root), 405000);
}

/* A container whose own group is the mount, and whose path is the host's. */
static void test_available_in_a_container(void **state)
{
    (void)state;
    const char *root = made_up_machine("box", "/proc/meminfo", MEMINFO);
    made_up_machine("box", "/proc/self/cgroup", "0::/host/path/not/here\n");
    made_up_machine("box", "/sys/fs/cgroup/memory.max", "204800\n");
    assert_int_equal(mem_available_bytes_under(root), 204800);
}

static void test_available_here(void **state)
{
    (void)state;
    uint64_t available = mem_available_bytes();
    assert_true(available > 16 * MIB && available < (uint64_t)1 << 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage_sees_an_arena),
        cmocka_unit_test(test_arena_sizes),
        cmocka_unit_test(test_arena_too_big_is_refused),
        cmocka_unit_test(test_arena_is_not_inherited),
        cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_count_is_exact),
        cmocka_unit_test(test_bytes_balance),
        cmocka_unit_test(test_bracket),
        cmocka_unit_test(test_bracket_is_per_thread),
        cmocka_unit_test(test_threads_of_libraries_do_not_count),
        cmocka_unit_test(test_available_without_cgroups),
        cmocka_unit_test(test_available_cgroup_v2),
        cmocka_unit_test(test_available_cgroup_v1),
        cmocka_unit_test(test_available_in_a_container),
        cmocka_unit_test(test_available_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
