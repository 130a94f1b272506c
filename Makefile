# make            builds build/release/spillway (config=debug|asan|tsan|cov for others)
# make help       what else there is
config ?= release
B := build/$(config)

CFLAGS_release := -O3 -g
CFLAGS_debug := -O0 -g3
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DSPILLWAY_SYSTEM_HEAP
CFLAGS_tsan := -O1 -g -fsanitize=thread -fno-omit-frame-pointer -DSPILLWAY_SYSTEM_HEAP
CFLAGS_cov := -O0 -g --coverage
HEAP := $(if $(filter asan tsan,$(config)),,-ljemalloc)

CC := gcc
CFLAGS := -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror -I. -MMD -MP \
          -pthread $(CFLAGS_$(config))
LDLIBS := $(HEAP) -luring -lhwloc -ljansson -lpcre2-8 -lxxhash -ldnnl -lm

SOURCES := $(sort $(wildcard core/*.c io/*.c model/*.c model/cpu/*.c offload/*.c tools/*.c))
TESTS := $(sort $(wildcard tests/*/test_*.c))
OBJECTS := $(SOURCES:%.c=$(B)/%.o)
LIBRARY := $(filter-out $(B)/tools/main.o,$(OBJECTS))
# What tests share, one object for each file that is no test itself.
TEST_SHARED := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard tests/shared/*.c)))
TEST_BINARIES := $(TESTS:%.c=$(B)/%)

all: $(B)/spillway
tests: $(TEST_BINARIES)

$(B)/spillway: $(OBJECTS)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
$(B)/libspillway.a: $(LIBRARY)
	rm -f $@ && ar rcs $@ $^
$(TEST_BINARIES): %: %.o $(TEST_SHARED) $(B)/libspillway.a
	$(CC) $(CFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<
-include $(OBJECTS:.o=.d) $(TEST_BINARIES:=.d) $(TEST_SHARED:.o=.d)

.SECONDARY:
.PHONY: all tests
