/*
 * Property: sample writes the prompt, then what the model says, as UTF-8 whatever the model draws;
 * the same again for the same seed; stops at the end of a text and at --tokens; and refuses what
 * is no model with one sentence.
 * Method: models whose weights are made so that each position has one likeliest token, so that the
 * text is known; and a trained run for what depends on chance.
 */
#include "core/base.h"
#include "io/bpe.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS  64
#define POSITIONS 32

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    command_data("data", 1);
    command_model(&ignored, "small", 2, 32, POSITIONS, COMMAND_VOCAB + 50);
    command_must(train_main, "train --model @/small.json --data @/data --out @/run --nvme @/nvme "
                             "--seq 16 --batch 4 --steps 20 --lr 1e-2 --warmup 0");
    return 0;
}

static char *sampled(const char *line)
{
    command_must(sample_main, line);
    char *text = strdup(command_out());
    assert_non_null(text);
    return text;
}

/* ---- Models that say what a test wants ------------------------------------------------------- */

/* The token of this byte; 256 is the end of a text. */
static uint32_t token_of(const struct bpe *bpe, uint32_t byte)
{
    if (byte == 256)
        return bpe_end_of_text(bpe);
    for (uint32_t t = 0; t < bpe_vocab_size(bpe); t++) {
        size_t bytes;
        const char *text = bpe_token_bytes(bpe, t, &bytes);
        if (bytes == 1 && (unsigned char)text[0] == byte && t != bpe_end_of_text(bpe))
            return t;
    }
    fail_msg("no token for byte %u", byte);
    return 0;
}

/* What follows position t is said[t % count], each said byte in a dimension of its own: its token's
 * embedding is 1 there and less elsewhere, and the position's points to the next one. Blocks are
 * zero: the residual stream passes through. */
struct script {
    uint32_t tokens[CHANNELS];
    uint32_t count;
};

static float script_value(const void *context, const struct tensors *tensors, uint32_t tensor,
                          uint64_t index)
{
    const struct script *script = context;
    uint64_t row = index / CHANNELS, column = index % CHANNELS;
    if (strstr(tensors->list[tensor].name, "wte")) {
        for (uint32_t i = 0; i < script->count; i++)
            if (script->tokens[i] == row && column == i)
                return 1;
        return 0;
    }
    if (strstr(tensors->list[tensor].name, "wpe"))
        return row % script->count == column ? 100 : 0;
    return strcmp(tensors->list[tensor].name, "transformer.ln_f.weight") == 0;
}

/* A folder whose model says these bytes over and over after a prompt of one token. */
static void make_script(const char *name, const uint32_t *bytes, uint32_t count)
{
    struct err err;
    struct bpe *bpe;
    struct config config;
    struct script script = {.count = count};
    assert_int_equal(bpe_load(&bpe, scratch_path("data"), &err), 0);
    for (uint32_t i = 0; i < count; i++)
        script.tokens[i] = token_of(bpe, bytes[i]);
    command_model(&config, name, 1, CHANNELS, POSITIONS, bpe_vocab_size(bpe));
    command_folder(name, &config, "data", script_value, &script);
    bpe_free(bpe);
}

static void says(const char *name, uint32_t tokens, const char *expected)
{
    char line[256];
    snprintf(line, sizeof(line), "sample --model @/%s --prompt x --temperature 0 --tokens %u", name,
             tokens);
    char *text = sampled(line);
    assert_string_equal(text, expected);
    free(text);
}

static void test_whole_characters(void **state)
{
    (void)state;
    const uint32_t e[] = {0xc3, 0xa9};
    make_script("accent", e, 2);
    says("accent", 4, "xéé\n");
    says("accent", 3, "xé\n"); /* the half of a character is held back */
    says("accent", 1, "x\n");
    says("accent", 0, "x\n");
    const uint32_t four[] = {0xf0, 0x9f, 0x98, 0x80};
    make_script("four", four, 4);
    says("four", 4, "x😀\n");
    says("four", 7, "x😀\n");
}

/* Each byte that can be part of no character is one U+FFFD, and what follows it is read afresh. */
static void test_broken_characters(void **state)
{
    (void)state;
    const uint32_t cut[] = {0xc3, 'a', 0xa9, 'b'};
    make_script("cut", cut, 4);
    says("cut", 4,
         "x\xef\xbf\xbd"
         "a\xef\xbf\xbd"
         "b\n");
    const uint32_t overlong[] = {0xe0, 0x80, 'c'}; /* e0 must be followed by a0 or more */
    make_script("overlong", overlong, 3);
    says("overlong", 3,
         "x\xef\xbf\xbd\xef\xbf\xbd"
         "c\n");
    const uint32_t surrogate[] = {0xed, 0xa0, 0xff, 'd'};
    make_script("surrogate", surrogate, 4);
    says("surrogate", 4,
         "x\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
         "d\n");
}

static void test_end_of_text(void **state)
{
    (void)state;
    const uint32_t bytes[] = {'a', 'b', 256, 'c'};
    make_script("end", bytes, 4);
    says("end", 30, "xab\n");
}

/* ---- A run ----------------------------------------------------------------------------------- */

static bool is_utf8(const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c;) {
        int more = *c < 0x80 ? 0 : *c >= 0xc2 && *c < 0xe0 ? 1 : (*c & 0xf0) == 0xe0 ? 2 : 3;
        if (*c >= 0x80 && (*c < 0xc2 || *c > 0xf4))
            return false;
        for (c++; more > 0; more--, c++)
            if ((*c & 0xc0) != 0x80)
                return false;
    }
    return true;
}

static void same(const char *a_line, const char *b_line, bool wanted)
{
    char *a = sampled(a_line), *b = sampled(b_line);
    if ((strcmp(a, b) == 0) != wanted)
        fail_msg("%s\n%s\n%s\n%s", a_line, a, b_line, b);
    assert_true(is_utf8(a) && is_utf8(b));
    free(a);
    free(b);
}

static void test_seeds(void **state)
{
    (void)state;
    same("sample --run @/run --prompt voda --tokens 30 --seed 5",
         "sample --run @/run --prompt voda --tokens 30 --seed 5", true);
    same("sample --run @/run --prompt voda --tokens 30 --seed 5",
         "sample --run @/run --prompt voda --tokens 30 --seed 6", false);
    same("sample --run @/run --prompt voda --tokens 30 --seed 5 --temperature 0",
         "sample --run @/run --prompt voda --tokens 30 --seed 6 --temperature 0", true);
    same("sample --run @/run --prompt voda --tokens 30 --seed 5 --top-k 1",
         "sample --run @/run --prompt voda --tokens 30 --temperature 0", true);
    same("sample --run @/run --prompt voda --tokens 30 --seed 5 --top-k 0",
         "sample --run @/run --prompt voda --tokens 30 --seed 5 --top-k 350", true);
}

/* So hot that every token comes up, those above the tokenizer's among the model's if they could,
 * and for longer than the context. */
static void test_long_and_hot(void **state)
{
    (void)state;
    char *text =
        sampled("sample --run @/run --prompt řeka --tokens 150 --temperature 50 --top-k 0");
    assert_memory_equal(text, "řeka", strlen("řeka"));
    assert_true(strlen(text) > 150);
    assert_int_equal(text[strlen(text) - 1], '\n');
    assert_true(is_utf8(text));
    free(text);
    text = sampled("sample --run @/run --tokens 5");
    assert_true(is_utf8(text));
    free(text);
}

static void test_prompt_longer_than_context(void **state)
{
    (void)state;
    char line[2048] = "sample --run @/run --tokens 3 --temperature 0 --prompt ";
    for (int i = 0; i < 60; i++)
        strcat(line, "vodamlýn");
    char *text = sampled(line);
    assert_int_equal(strncmp(text, strstr(line, "vodamlýn"), 60 * strlen("vodamlýn")), 0);
    free(text);
}

static void test_usage(void **state)
{
    (void)state;
    command_must(sample_main, "sample --help");
    assert_non_null(strstr(command_out(), "spillway sample --run"));
    command_refused(sample_main, "sample", 2, "--run");
    command_refused(sample_main, "sample --run @/run --model @/end", 2, "one of");
    command_refused(sample_main, "sample --run @/run --tokens -1", 2, "--tokens");
    command_refused(sample_main, "sample --run @/run --tokens 99999999999", 2, "--tokens");
    command_refused(sample_main, "sample --run @/run --precision fp8", 2, "fp32, bf16");
    command_refused(sample_main, "sample --run @/run words", 2, "words");
}

static void test_no_run(void **state)
{
    (void)state;
    command_refused(sample_main, "sample --run @/none --prompt x", 1, "@/none");
    command_refused(sample_main, "sample --run @/data --prompt x", 1, "@/data");
    command_refused(sample_main, "sample --run @/end --prompt x", 1, "--model");
    command_refused(sample_main, "sample --model @/run --prompt x", 1, "--run");

    char *config = scratch_read(scratch_path("run/config.json"));
    char *tokenizer = scratch_read(scratch_path("run/tokenizer.json"));
    char *commit = scratch_read(scratch_path("run/commit.json"));
    scratch_write("broken/config.json", config);
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "tokenizer");
    scratch_write("broken/tokenizer.json", "{}");
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "tokenizer.json");
    scratch_write("broken/tokenizer.json", tokenizer);
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "no commit yet");
    scratch_write("broken/commit.json", "{\"version\": 1, \"step\": 3}");
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "broken/commit.json");
    scratch_write("broken/commit.json", "");
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "broken/commit.json");
    scratch_write("broken/commit.json", commit);
    char *state_path = strstr(commit, "\"state\": \"") + strlen("\"state\": \"");
    *strchr(state_path, '"') = '\0';
    const char *away = scratch_path("state-that-is-away");
    assert_int_equal(rename(state_path, away), 0);
    command_refused(sample_main, "sample --run @/broken --prompt x", 1, "/spillway-");
    assert_int_equal(rename(away, state_path), 0);
    free(commit);
    free(tokenizer);
    free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_characters),
        cmocka_unit_test(test_broken_characters),
        cmocka_unit_test(test_end_of_text),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_long_and_hot),
        cmocka_unit_test(test_prompt_longer_than_context),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_no_run),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
