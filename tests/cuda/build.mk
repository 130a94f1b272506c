# How the CUDA sources become tests that need no GPU, and, where nvcc is, libspillway_cuda.so.

CUDA_SOURCES := $(sort $(wildcard model/cuda/*.c model/cuda/*.cu) offload/gpu.c)
CUDA_TESTS := $(filter tests/cuda/%,$(TESTS))
ifeq ($(config),asan)
# Its faults would end the program before the emulation tells them.
CUDA_TESTS := $(filter-out tests/cuda/test_emulation.c,$(CUDA_TESTS))
endif
# In two flavours: as it is, and watched by detector.c in the place of the thread sanitizer's library.
CUDA_FLAVOURS := $(if $(filter tsan cov,$(config)),,plain) $(if $(filter release,$(config)),checked)

CUDA_INCLUDES := -Itests/cuda/emulation/include
CUDA_CXXFLAGS := -std=gnu++17 -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -Werror -I. -fno-exceptions \
                 -MMD -MP -ffp-contract=off $(CUDA_INCLUDES)
CUDA_FLAGS_plain := $(CFLAGS_$(config))
CUDA_FLAGS_checked := -O1 -g -fsanitize=thread
# -O3 adds nothing to fibers but time.
CUDA_FLAGS_plain := $(CUDA_FLAGS_plain:-O3=-O2)

CUDA_EMULATION := $(wildcard tests/cuda/emulation/*.c)
CUDA_SHARED := $(filter-out tests/cuda/test_%,$(wildcard tests/cuda/*.c tests/cuda/*.cu))
CUDA_LEAVES_plain := tests/cuda/emulation/detector.c
CUDA_LEAVES_checked := tests/cuda/emulation/no_detector.c

# What reads and writes pinned memory on the host, in the place of the library's.
CUDA_WATCHED_checked := offload/exec.c model/optim.c

# Of one flavour: the objects that all its tests are linked with, and the tests.
cuda_objects = $(addprefix $(B)/cuda/$(1)/,$(addsuffix .o,$(CUDA_SOURCES) $(CUDA_SHARED) $(CUDA_WATCHED_$(1)) \
               $(filter-out $(CUDA_LEAVES_$(1)),$(CUDA_EMULATION))))
cuda_tests = $(patsubst tests/cuda/%.c,$(B)/cuda/$(1)/%,$(filter %.c,$(CUDA_TESTS)))
CUDA_BINARIES := $(foreach f,$(CUDA_FLAVOURS),$(call cuda_tests,$(f)))
# The script links as the tests are linked, with changed sources.
export LDLIBS
CUDA_RUNS := $(filter %.sh,$(if $(filter release,$(config)),$(CUDA_TESTS))) $(CUDA_BINARIES)

define CUDA_FLAVOUR
$(B)/cuda/$(1)/tests/cuda/emulation/%.c.o: tests/cuda/emulation/%.c Makefile tests/cuda/build.mk | packages
	@echo "  CC   $$< ($(1))"
	@mkdir -p $$(@D)
	@$$(CC) $$(CFLAGS) $$(CUDA_INCLUDES) -c -o $$@ $$<
$(B)/cuda/$(1)/%.c.o: %.c Makefile tests/cuda/build.mk | packages
	@echo "  CC   $$< ($(1))"
	@mkdir -p $$(@D)
	@$$(CC) $$(filter-out $$(CFLAGS_$(config)),$$(CFLAGS)) $$(CUDA_FLAGS_$(1)) $$(CUDA_INCLUDES) \
	    -c -o $$@ $$<
$(B)/cuda/$(1)/%.cu.o: %.cu Makefile tests/cuda/build.mk | packages
	@echo "  CXX  $$< ($(1))"
	@mkdir -p $$(@D)
	@g++ -x c++ $$(CUDA_CXXFLAGS) $$(CUDA_FLAGS_$(1)) -c -o $$@ $$<
$(call cuda_tests,$(1)): $(B)/cuda/$(1)/%: $(B)/cuda/$(1)/tests/cuda/%.c.o $(call cuda_objects,$(1)) \
    $(TEST_SHARED) $(LIBRARY)
	@echo "  LINK $$@"
	@$$(CC) $$(CFLAGS) -rdynamic -o $$@ $$^ -lcmocka $$(LDLIBS)
# What runs on a card otherwise, on an emulated one: its figures mean nothing, its way of working does.
$(B)/cuda/$(1)/bench_gpu: $(B)/cuda/$(1)/benchmarks/cuda/bench_gpu.c.o $(call cuda_objects,$(1)) $(TEST_SHARED) \
    $(LIBRARY)
	@echo "  LINK $$@"
	@$$(CC) $$(CFLAGS) -rdynamic -o $$@ $$^ -lcmocka $$(LDLIBS)
$(B)/cuda/$(1)/spillway: $(B)/tools/main.o $(B)/cuda/$(1)/tests/cuda/emulation/plugin/plugin.c.o \
    $(call cuda_objects,$(1)) $(TEST_SHARED) $(LIBRARY)
	@echo "  LINK $$@"
	@$$(CC) $$(CFLAGS) -rdynamic -o $$@ $$^ -lcmocka $$(LDLIBS)
endef
# What the scripts among the tests run.
CUDA_SCRIPTED = $(if $(filter release,$(config)),$(B)/cuda/plain/spillway $(B)/cuda/plain/bench_gpu)
$(foreach f,$(CUDA_FLAVOURS),$(eval $(call CUDA_FLAVOUR,$(f))))
$(B)/cuda/checked/offload/exec.c.o: CUDA_FLAGS_checked += -Dmemcpy=watched_memcpy
-include $(shell find $(B)/cuda -name '*.d' 2>/dev/null)

# The plugin, where nvcc is. Of the architectures those that this nvcc knows; PTX of the newest
# serves what comes after. What the compiler says of registers stays beside each object.
NVCC := $(firstword $(wildcard $(shell command -v nvcc) /usr/local/cuda/bin/nvcc))
CUDA_HOME := $(NVCC:%/bin/nvcc=%)
CUDA_LIB := $(firstword $(wildcard $(addprefix $(CUDA_HOME)/,lib64 lib targets/x86_64-linux/lib)))
ifneq ($(and $(filter release,$(config)),$(wildcard $(CUDA_HOME)/include/cublasLt.h)),)
CUDA_WANTED := 80 86 89 90 120
CUDA_KNOWN := $(filter $(CUDA_WANTED),$(patsubst sm_%,%,$(shell $(NVCC) --list-gpu-code)))
NVCC_FLAGS := -std=c++17 -O3 -I. -MMD -MP -Xcompiler -fPIC -Werror all-warnings -Xptxas -v \
              $(foreach a,$(CUDA_KNOWN),-gencode arch=compute_$(a),code=sm_$(a)) \
              -gencode arch=compute_$(lastword $(CUDA_KNOWN)),code=compute_$(lastword $(CUDA_KNOWN))
CUDA_OBJECTS := $(addprefix $(B)/cuda/nvcc/,$(addsuffix .o,$(CUDA_SOURCES)))

all: $(B)/libspillway_cuda.so
# AdamW gives the CPU's bits, which are made without contraction.
$(B)/cuda/nvcc/model/cuda/gpu_adamw.cu.o: NVCC_FLAGS += -fmad=false
$(B)/cuda/nvcc/%.cu.o: %.cu Makefile tests/cuda/build.mk | packages
	@echo "  NVCC $<"
	@mkdir -p $(@D)
	@$(NVCC) $(NVCC_FLAGS) -c -o $@ $< 2>$@.ptxas || { cat $@.ptxas; exit 1; }
$(B)/cuda/nvcc/%.c.o: %.c Makefile tests/cuda/build.mk | packages
	@echo "  CC   $< (nvcc's headers)"
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) -fPIC -isystem $(CUDA_HOME)/include -c -o $@ $<
$(B)/libspillway_cuda.so: $(CUDA_OBJECTS)
	@echo "  LINK $@"
	@$(NVCC) -shared -cudart static -o $@ $^ -L$(CUDA_LIB) -Xlinker -rpath=$(CUDA_LIB) -lcublasLt

# The tests and the benchmarks of kernels on a card: the plugin's objects, CUDA's own libraries.
CUDA_REAL_TESTS := $(filter-out %/test_emulation,$(call cuda_tests,real))
CUDA_REAL_SHARED := $(addprefix $(B)/cuda/real/,$(addsuffix .o,tests/cuda/gpu.c $(wildcard tests/cuda/real/*.c)))
CUDA_REAL_LIBS := -L$(CUDA_LIB) -Wl,-rpath=$(CUDA_LIB) -lcublasLt -lcudart_static -lstdc++ -ldl -lrt

CUDA_SCRIPTED += $(CUDA_REAL_TESTS) $(B)/cuda/real/bench_gpu
#: make cuda-real       the CUDA tests and benchmarks as they run on a card, in build/release/cuda/real
cuda-real: $(CUDA_REAL_TESTS) $(B)/cuda/real/bench_gpu
$(B)/cuda/real/%.c.o: %.c Makefile tests/cuda/build.mk | packages
	@echo "  CC   $< (real)"
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) -isystem $(CUDA_HOME)/include -c -o $@ $<
$(CUDA_REAL_TESTS): $(B)/cuda/real/%: $(B)/cuda/real/tests/cuda/%.c.o $(CUDA_OBJECTS) $(CUDA_REAL_SHARED) \
    $(TEST_SHARED) $(LIBRARY)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) -rdynamic -o $@ $^ -lcmocka $(LDLIBS) $(CUDA_REAL_LIBS)
$(B)/cuda/real/bench_gpu: $(B)/cuda/real/benchmarks/cuda/bench_gpu.c.o $(CUDA_OBJECTS) $(LIBRARY)
	@echo "  LINK $@"
	@$(CC) $(CFLAGS) -rdynamic -o $@ $^ $(LDLIBS) $(CUDA_REAL_LIBS)
#: make cuda-report     docs/cuda-kernels.md anew, from what nvcc said of the kernels
cuda-report: $(B)/libspillway_cuda.so
	@tools/cuda_report.sh $(B)/cuda/nvcc $(CUDA_HOME) >docs/cuda-kernels.md
.PHONY: cuda-report cuda-real
endif
