# make         builds build/release/spillway (config=debug|asan|tsan|cov|fuzz for others)
# make help    what else there is
config ?= release
PREFIX ?= /usr/local
B := build/$(config)
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif

CFLAGS_release := -O3 -g
CFLAGS_debug := -O0 -g3
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
               -fno-omit-frame-pointer -DSPILLWAY_SYSTEM_HEAP
CFLAGS_tsan := -O1 -g -fsanitize=thread -fno-omit-frame-pointer -DSPILLWAY_SYSTEM_HEAP
# -w: clang, whose warnings are others, is here for its fuzzer; gcc warns.
CFLAGS_fuzz := -O1 -g -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all \
               -w -DSPILLWAY_SYSTEM_HEAP
CFLAGS_cov := -O0 -g --coverage
# The sanitizers bring a heap of their own.
HEAP := $(if $(filter asan tsan fuzz,$(config)),,-ljemalloc)

CC := $(if $(filter fuzz,$(config)),clang,gcc)
# -ffp-contract=off: the same bits whatever the instruction set; -fno-math-errno: sqrt in vectors.
# -Wno-psabi: the kernels' vectors cross no call, so how they would is no news.
CFLAGS := -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes -Wno-psabi -Werror -I. \
          -MMD -MP -pthread -ffp-contract=off -fno-math-errno $(CFLAGS_$(config))
LDLIBS := $(HEAP) -luring -lhwloc -ljansson -lpcre2-8 -lxxhash -ldnnl -lz -lbz2 -lzstd -lm

SOURCES := $(sort $(wildcard core/*.c io/*.c model/*.c model/cpu/*.c offload/*.c tools/*.c))
# The plugin's side of a CUDA device (offload/gpu.h).
SOURCES := $(filter-out offload/gpu.c,$(SOURCES))
# Scripts run the program, binaries a module; scripts take longer and so come first.
TESTS := $(sort $(wildcard tests/system/*.sh tests/cuda/*.sh)) \
         $(sort $(filter-out tests/soak/%,$(wildcard tests/*/test_*.c)))
SOAK := $(sort $(wildcard tests/soak/*.sh tests/soak/test_*.c))
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.c benchmarks/*.sh))
# What several threads run, and what the sanitizer understands (it does not see into libraries).
TSAN_TESTS := $(wildcard tests/core/test_pool.c tests/core/test_watch.c tests/core/test_mem.c \
              tests/io/test_unpack.c tests/io/test_wiki.c tests/offload/test_train.c)

OBJECTS := $(SOURCES:%.c=$(B)/%.o)
LIBRARY := $(B)/libspillway.a
TEST_SHARED := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard tests/shared/*.c)))
TEST_RUNS := $(patsubst %.c,$(B)/%,$(filter-out tests/cuda/%,$(TESTS)))
SOAK_RUNS := $(SOAK:%.c=$(B)/%)
BENCHMARK_RUNS := $(BENCHMARKS:%.c=$(B)/%)
TEST_BINARIES := $(filter $(B)/%,$(TEST_RUNS))
SOAK_BINARIES := $(filter $(B)/%,$(SOAK_RUNS))
BENCHMARK_BINARIES := $(filter $(B)/%,$(BENCHMARK_RUNS))
REFERENCE_BINARIES := $(patsubst %.c,$(B)/%,$(sort $(wildcard tests/reference/*.c)))
# Parsers, and so little of offload and nothing of tools; libFuzzer brings a main of its own.
FUZZERS := $(patsubst %.c,$(B)/%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
FUZZ_MAIN := $(B)/tests/fuzz/$(if $(filter fuzz,$(config)),seeds,driver).o
FUZZ_OBJECTS := $(filter $(B)/core/% $(B)/io/% $(B)/model/config.o $(B)/offload/profile%,$(OBJECTS)) \
                $(B)/tests/shared/pack.o $(B)/tests/fuzz/files.o $(FUZZ_MAIN)
RUN_TESTS := tests/run.sh $(B)

.DEFAULT_GOAL := all
include tests/cuda/build.mk

all: $(B)/spillway

help:
	@sed -n 's/^#: //p' Makefile tests/cuda/build.mk

#: make                 build/release/spillway
#: make run             a demonstration: trains a small model on Czech prose, in under 5 minutes
run: all
	@tools/packages.sh demo
	@tools/demo.sh $(B)/spillway $(B)/demo
#: make test            all tests; make test TESTS=tests/core/test_pool.c runs some
test: $(TEST_BINARIES) $(CUDA_BINARIES) $(CUDA_SCRIPTED) $(BENCHMARK_BINARIES) all
	@$(RUN_TESTS) $(CUDA_RUNS) $(TEST_RUNS)
tests: $(TEST_BINARIES) $(CUDA_BINARIES) $(CUDA_SCRIPTED)
#: make asan            all tests under the address and undefined-behaviour sanitizers
asan:
	@$(MAKE) --no-print-directory config=asan test
#: make tsan            the tests of what several threads share under the thread sanitizer
tsan:
	@$(MAKE) --no-print-directory config=tsan TESTS="$(TSAN_TESTS)" test
#: make fuzz            every parser on mutated input; SECONDS_EACH=60 for each entry
SECONDS_EACH ?= 60
fuzz:
	@tests/fuzz/run.sh $(SECONDS_EACH)
fuzzers: $(FUZZERS)
#: make soak            what takes too long for make test: hundreds of kills, long runs
soak: $(SOAK_BINARIES) all
	@SOAK=1 SECONDS_MAX=36000 $(RUN_TESTS) $(SOAK_RUNS) $(filter %.sh,$(TEST_RUNS))
#: make bench           measures, and prints what it measured
bench: $(BENCHMARK_BINARIES) $(B)/tests/reference/time_tokens all
	@mkdir -p $(B)/bench
	@for b in $(BENCHMARK_RUNS); do \
	    echo "== $$b"; SPILLWAY=$(B)/spillway TMPDIR=$(B)/bench $$b || exit 1; done
#: make gpu-check OUT=DIR   on a machine with a GPU: everything that only one can show, in 8 minutes, as a table
OUT ?= $(B)/gpu-check
gpu-check:
	@benchmarks/cuda/gpu_check.sh $(OUT)
#: make reference       the same training in PyTorch and the same text in other tokenizers, beside ours
reference: all $(B)/tests/reference/dump_batches reference-tokenizers
	@tools/packages.sh demo reference
	@tests/reference/compare.sh $(B)/spillway $(B)/tests/reference/dump_batches $(B)/reference
reference-tokenizers: all $(B)/tests/reference/dump_tokens
	@tools/packages.sh reference
	@tests/reference/tokenizers.sh $(B)/spillway $(B)/tests/reference/dump_tokens $(B)/reference
#: make format          clang-format over everything
format:
	@tools/packages.sh format
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
#: make install         to PREFIX (/usr/local), below DESTDIR if given
install: all
	install -D -m 755 $(B)/spillway $(DESTDIR)$(PREFIX)/bin/spillway
	$(if $(NVCC),install -m 755 $(B)/libspillway_cuda.so $(DESTDIR)$(PREFIX)/bin/)
#: make clean           removes build/
clean:
	rm -rf build

# Missing packages are installed before the first file is compiled; when nothing is missing this
# takes some milliseconds. NO_INSTALL=1 leaves it out.
packages:
	@$(if $(NO_INSTALL),,tools/packages.sh build plot)

# -rdynamic: the plugin calls the program's functions.
$(B)/spillway: $(B)/tools/main.o $(LIBRARY)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(LIBRARY): $(filter-out $(B)/tools/main.o,$(OBJECTS))
	@rm -f $@ && ar qcs $@ $^
# What a benchmark shares with the tests.
$(B)/benchmarks/bench_wiki: $(B)/tests/shared/pack.o $(B)/tests/shared/wiki_dump.o
$(BENCHMARK_BINARIES) $(REFERENCE_BINARIES): %: %.o $(LIBRARY)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDLIBS)
$(TEST_BINARIES) $(SOAK_BINARIES): %: %.o $(TEST_SHARED) $(LIBRARY)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
$(FUZZERS): %: %.o $(FUZZ_OBJECTS)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) $(if $(filter fuzz,$(config)),-fsanitize=fuzzer) -o $@ $^ $(LDLIBS)
$(B)/%.o: %.c Makefile | packages
	@echo "  CC   $<"
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) -c -o $@ $<
# The known machines are inside the program (.incbin).
$(B)/tools/machines.o: $(wildcard tools/machines/*.json)
-include $(shell find $(B) -name '*.d' 2>/dev/null)

.SECONDARY:
.PHONY: all help run test tests asan tsan fuzz fuzzers soak bench gpu-check reference reference-tokenizers format install clean \
        packages
