/*
 * Property: training learns what Hugging Face's trainer learns; encoding is "lowest rank first,
 * leftmost of equals" for pieces of any length; decoding gives the bytes back; files of both forms
 * give the same tokenizer; a malformed file is refused with one sentence and never crashes. Method:
 * goldens from Hugging Face tokenizers 0.23, a plain quadratic encoder over the list of merges,
 * random bytes, and thousands of mutated files.
 */
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/bpe.h"
#include "io/bpe_table.h"
#include "io/file.h"
#include "io/pretoken.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The opening of K. H. Macha's Maj (1836). */
static const char poem[] = "Byl pozdn\xc3\xad ve\xc4\x8d"
                           "er \xe2\x80\x93 prvn\xc3\xad m\xc3\xa1j \xe2\x80\x93\n"
                           "ve\xc4\x8d"
                           "ern\xc3\xad m\xc3\xa1j \xe2\x80\x93 byl l\xc3\xa1sky \xc4\x8d"
                           "as.\n"
                           "Hrdli\xc4\x8d\xc4\x8din zval ku l\xc3\xa1sce hlas,\n"
                           "kde borov\xc3\xbd zav\xc3\xa1n\xc4\x9bl h\xc3\xa1j.\n"
                           "O l\xc3\xa1sce \xc5\xa1"
                           "eptal tich\xc3\xbd mech;\n"
                           "kv\xc4\x9btouc\xc3\xad strom lhal l\xc3\xa1sky \xc5\xbe"
                           "el,\n"
                           "svou l\xc3\xa1sku slav\xc3\xadk r\xc5\xaf\xc5\xbei p\xc4\x9bl,\n"
                           "r\xc5\xaf\xc5\xbeinu jevil vonn\xc3\xbd vzdech.";

static struct bpe *train(const char *text, size_t bytes, uint32_t vocab_size)
{
    struct err err;
    struct bpe *bpe;
    struct bpe_trainer *trainer = bpe_trainer_new(PRETOKEN_GPT2);
    bpe_trainer_add(trainer, text, bytes);
    assert_int_equal(bpe_train(&bpe, trainer, vocab_size, &err), 0);
    bpe_trainer_free(trainer);
    return bpe;
}

static struct bpe *train_on_poem(void)
{
    return train(poem, strlen(poem), 300);
}

static void assert_token(const struct bpe *bpe, uint32_t id, const char *text)
{
    size_t bytes;
    const char *token = bpe_token_bytes(bpe, id, &bytes);
    assert_int_equal(bytes, strlen(text));
    assert_memory_equal(token, text, bytes);
}

/* ---------------------------------------------------------------------------------------------
 * Training
 * ------------------------------------------------------------------------------------------- */

static void test_train_golden(void **state)
{
    (void)state;
    static const char *const learned[] = {"\xc3\xa1",
                                          " l",
                                          "\xc3\xad",
                                          "\xc4\x8d",
                                          "\xc3\xa1s",
                                          " l\xc3\xa1s",
                                          "al",
                                          "ch",
                                          "n\xc3\xad",
                                          "\xc3\xbd",
                                          "\xc4\x9b",
                                          "\xc5\xbe",
                                          "\xe2\x80",
                                          " m",
                                          " p",
                                          " v",
                                          " \xe2\x80",
                                          "\xc3\xa1j",
                                          " l\xc3\xa1sk",
                                          " \xe2\x80\x93",
                                          "as",
                                          "av",
                                          "ce",
                                          "de",
                                          "er",
                                          "e\xc4\x8d",
                                          "in",
                                          "ou",
                                          "ro",
                                          "r\xc5",
                                          "yl",
                                          "\xaf\xc5\xbe",
                                          " b",
                                          " h",
                                          " s",
                                          " z",
                                          " l\xc3\xa1sce",
                                          "\xc4\x9bl",
                                          " m\xc3\xa1j",
                                          " l\xc3\xa1sky",
                                          "e\xc4\x8d"
                                          "er",
                                          "r\xc5\xaf\xc5\xbe"};
    struct bpe *bpe = train_on_poem();
    assert_int_equal(bpe_vocab_size(bpe), 257 + ARRAY_COUNT(learned));
    assert_int_equal(bpe_end_of_text(bpe), 0);
    assert_token(bpe, 0, "<|endoftext|>");
    assert_token(bpe, 1, "!");
    assert_token(bpe, 221, " ");
    for (uint32_t i = 0; i < ARRAY_COUNT(learned); i++)
        assert_token(bpe, 257 + i, learned[i]);

    static const char text[] = "Byl pozdn\xc3\xad ve\xc4\x8d"
                               "er, l\xc3\xa1ska \xc5\xa1"
                               "eptala: r\xc5\xaf\xc5\xbe"
                               "e!\n";
    static const uint32_t expected[] = {34,  287, 271, 79,  90,  68, 265, 272, 297,
                                        12,  275, 65,  221, 130, 95, 69,  80,  84,
                                        263, 65,  26,  221, 298, 69, 1,   199};
    uint32_t tokens[sizeof(text)];
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    /* Twice: the second time the words come from the cache. */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(bpe_encode(encoder, text, strlen(text), tokens, ARRAY_COUNT(tokens)),
                         ARRAY_COUNT(expected));
        assert_memory_equal(tokens, expected, sizeof(expected));
    }
    bpe_encoder_free(encoder);
    bpe_free(bpe);
}

/* Equal counts: lower left id first, then lower right; pairs that overlap themselves; two ways to
 * the same token. */
static void test_train_ties(void **state)
{
    (void)state;
    static const char text[] = "abc bca cab abc bca cab aaaa aaaa";
    static const char *const learned[] = {"aa",  "ab",   "bc",  "cab",   " aa",
                                          " bc", " cab", "abc", " aaaa", " bca"};
    struct bpe *bpe = train(text, strlen(text), 275);
    assert_int_equal(bpe_vocab_size(bpe), 257 + ARRAY_COUNT(learned));
    for (uint32_t i = 0; i < ARRAY_COUNT(learned); i++)
        assert_token(bpe, 257 + i, learned[i]);
    bpe_free(bpe);
}

/* However the text is dealt out to trainers, and in whatever order they are put together. */
static void test_train_merged(void **state)
{
    (void)state;
    struct err err;
    struct bpe *whole = train_on_poem(), *merged;
    struct bpe_trainer *trainers[3];
    for (int i = 0; i < 3; i++)
        trainers[i] = bpe_trainer_new(PRETOKEN_GPT2);
    size_t start = 0;
    for (int i = 0; start < strlen(poem); i++) {
        size_t cut = pretoken_cut(poem + start, MIN((size_t)40, strlen(poem) - start));
        size_t bytes = cut > 0 ? cut : strlen(poem) - start;
        bpe_trainer_add(trainers[i % 3], poem + start, bytes);
        start += bytes;
    }
    bpe_trainer_merge(trainers[2], trainers[0]);
    bpe_trainer_merge(trainers[2], trainers[1]);
    assert_true(bpe_trainer_bytes(trainers[2]) > 0);
    assert_int_equal(bpe_train(&merged, trainers[2], 300, &err), 0);
    assert_int_equal(bpe_hash(merged), bpe_hash(whole));
    for (int i = 0; i < 3; i++)
        bpe_trainer_free(trainers[i]);
    bpe_free(merged);
    bpe_free(whole);
}

static void test_train_limits(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe;
    struct bpe_trainer *trainer = bpe_trainer_new(PRETOKEN_GPT2);
    assert_int_equal(bpe_train(&bpe, trainer, 256, &err), ERR_USAGE);
    assert_non_null(strstr(err.message, "257"));
    assert_int_equal(bpe_train(&bpe, trainer, BPE_TRAIN_VOCAB_MAX + 1, &err), ERR_USAGE);
    assert_int_equal(bpe_train(&bpe, trainer, 1000, &err), 0); /* no text: the bytes alone */
    assert_int_equal(bpe_vocab_size(bpe), 257);
    bpe_free(bpe);
    bpe_trainer_free(trainer);

    /* A piece of 10,000 letters, which is longer than the trainer keeps in one. */
    char *text = mem_alloc(10001, 1);
    memset(text, 'x', 10000);
    bpe = train(text, 10000, 270);
    assert_int_equal(bpe_vocab_size(bpe), 257 + 12);
    assert_token(bpe, 257, "xx");
    bpe_free(bpe);
    mem_free(text);
}

/* ---------------------------------------------------------------------------------------------
 * Encoding
 * ------------------------------------------------------------------------------------------- */

/* Merges in order of rank over the whole list, again and again. */
static size_t plain_encode(const struct bpe *bpe, const char *text, size_t bytes, uint32_t *tokens)
{
    size_t count = bytes;
    for (size_t i = 0; i < bytes; i++)
        tokens[i] = bpe->byte_token[(uint8_t)text[i]];
    for (uint32_t rank = 0; rank < bpe->merge_count; rank++) {
        bool found = false;
        for (size_t i = 0; !found && i + 1 < count; i++) {
            found = tokens[i] == bpe->merges[rank].left && tokens[i + 1] == bpe->merges[rank].right;
            if (found) {
                tokens[i] = bpe->merges[rank].result;
                memmove(tokens + i + 1, tokens + i + 2, (count - i - 2) * sizeof(*tokens));
                count--;
            }
        }
        if (found)
            rank = UINT32_MAX; /* from the first merge again */
    }
    return count;
}

/* Pieces of 1 to 200 letters: through the cache, by scanning and by the heap. */
static void test_encode_lengths(void **state)
{
    (void)state;
    static const char words[] =
        "abab abba baab abcabc cabcab aaaa aaaaa bbbb bcbc bcbc abcab abba abab";
    struct bpe *bpe = train(words, strlen(words), 280);
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    for (uint64_t seed = 0; seed < 600; seed++) {
        char text[200];
        uint32_t tokens[200], expected[200];
        size_t bytes = 1 + seed % 200;
        for (size_t i = 0; i < bytes; i++)
            text[i] = (char)('a' + rng_below(seed, 1, i, 3));
        size_t count = bpe_encode(encoder, text, bytes, tokens, 200);
        assert_int_equal(count, plain_encode(bpe, text, bytes, expected));
        assert_memory_equal(tokens, expected, count * sizeof(*tokens));
    }
    bpe_encoder_free(encoder);
    bpe_free(bpe);
}

static void check_round_trip(const struct bpe *bpe, const char *text, size_t bytes)
{
    uint32_t *tokens = mem_alloc(bytes + 1, sizeof(*tokens));
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    size_t count = bpe_encode(encoder, text, bytes, tokens, bytes), at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t token_bytes;
        const char *token = bpe_token_bytes(bpe, tokens[i], &token_bytes);
        assert_true(at + token_bytes <= bytes);
        assert_memory_equal(text + at, token, token_bytes);
        at += token_bytes;
    }
    assert_int_equal(at, bytes);
    bpe_encoder_free(encoder);
    mem_free(tokens);
}

static void test_any_bytes(void **state)
{
    (void)state;
    struct bpe *bpe = train_on_poem();
    char *text = mem_alloc(1 << 17, 1);
    for (uint32_t i = 0; i < 1 << 17; i++)
        text[i] = (char)rng_u64(3, 0, i);
    check_round_trip(bpe, text, 1 << 17);
    memset(text, ' ', 1 << 16); /* one piece of 65,536 bytes but for its last */
    check_round_trip(bpe, text, 1 << 17);
    check_round_trip(bpe, poem, strlen(poem));
    check_round_trip(bpe, "", 0);
    mem_free(text);

    /* What looks like a special token in a text is text. */
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    uint32_t tokens[32];
    size_t count = bpe_encode(encoder, "a<|endoftext|>", 14, tokens, 32);
    for (size_t i = 0; i < count; i++)
        assert_int_not_equal(tokens[i], bpe_end_of_text(bpe));
    bpe_encoder_free(encoder);
    bpe_free(bpe);
}

/* ---------------------------------------------------------------------------------------------
 * Files
 * ------------------------------------------------------------------------------------------- */

static void test_save_and_load(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe = train_on_poem(), *loaded, *again;
    assert_int_equal(file_make_dirs(scratch_path("saved/twice"), &err), 0);
    assert_int_equal(bpe_save(bpe, scratch_path("saved"), &err), 0);
    assert_int_equal(bpe_load(&loaded, scratch_path("saved/tokenizer.json"), &err), 0);
    assert_int_equal(bpe_hash(loaded), bpe_hash(bpe));
    assert_int_equal(bpe_vocab_size(loaded), bpe_vocab_size(bpe));
    assert_int_equal(bpe_end_of_text(loaded), 0);
    assert_int_equal(bpe_save(loaded, scratch_path("saved/twice"), &err), 0);
    assert_int_equal(bpe_load(&again, scratch_path("saved/twice"), &err), 0);
    assert_int_equal(bpe_hash(again), bpe_hash(bpe));
    char *first = scratch_read(scratch_path("saved/tokenizer.json"));
    char *second = scratch_read(scratch_path("saved/twice/tokenizer.json"));
    assert_string_equal(first, second);
    free(first);
    free(second);
    bpe_free(again);
    bpe_free(loaded);
    bpe_free(bpe);
    bpe_free(NULL);
}

/* GPT-2's names of the 256 bytes and three merges over them, ids falling, as text for "vocab". */
static void print_vocab(char *text, size_t size, const char *more)
{
    size_t used = 0;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t c = bpe_table_byte_character((uint8_t)byte);
        char name[4] = {(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
        if (c < 0x80)
            memcpy(name, (char[]){(char)c, 0}, 2);
        bool escaped = c == '"' || c == '\\';
        used += (size_t)snprintf(text + used, size - used, "%s\"%s%s\":%u", used > 0 ? "," : "",
                                 escaped ? "\\" : "", name, 255 - byte);
    }
    used += (size_t)snprintf(text + used, size - used, "%s", more);
    assert_true(used < size);
}

#define FEW_TOKENS ",\"ab\":256,\"abc\":258,\"\u0120a\":257,\"<|endoftext|>\":259"
#define PLAIN_PRE  "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"

static void write_tokenizer(const char *name, const char *head, const char *tokens,
                            const char *merges)
{
    char vocab[8192], text[16384];
    print_vocab(vocab, sizeof(vocab), tokens);
    int length = snprintf(text, sizeof(text),
                          "{%s\"model\":{\"type\":\"BPE\",\"vocab\":{%s},\"merges\":%s}}", head,
                          vocab, merges);
    assert_true(length > 0 && (size_t)length < sizeof(text));
    scratch_write(name, text);
}

/* tokenizer.json with merges in either form, and vocab.json with merges.txt, as GPT-2 has it. */
static void test_forms(void **state)
{
    (void)state;
    struct err err;
    struct bpe *strings, *pairs, *split, *named;
    char vocab[8192], text[8194];
    write_tokenizer("strings.json", PLAIN_PRE ",", FEW_TOKENS, "[\"a b\",\"\u0120 a\",\"ab c\"]");
    write_tokenizer("pairs.json", PLAIN_PRE ",", FEW_TOKENS,
                    "[[\"a\",\"b\"],[\"\u0120\",\"a\"],[\"ab\",\"c\"]]");
    print_vocab(vocab, sizeof(vocab), FEW_TOKENS);
    snprintf(text, sizeof(text), "{%s}", vocab);
    scratch_write("split/vocab.json", text);
    scratch_write("split/merges.txt", "#version: 0.2\na b\r\n\xc4\xa0 a\nab c");
    assert_int_equal(bpe_load(&strings, scratch_path("strings.json"), &err), 0);
    assert_int_equal(bpe_load(&pairs, scratch_path("pairs.json"), &err), 0);
    assert_int_equal(bpe_load(&split, scratch_path("split"), &err), 0);
    assert_int_equal(bpe_load(&named, scratch_path("split/vocab.json"), &err), 0);
    assert_int_equal(bpe_hash(pairs), bpe_hash(strings));
    assert_int_equal(bpe_hash(split), bpe_hash(strings));
    assert_int_equal(bpe_hash(named), bpe_hash(strings));
    assert_int_equal(bpe_end_of_text(split), 259);

    uint32_t tokens[16];
    struct bpe_encoder *encoder = bpe_encoder_new(split);
    assert_int_equal(bpe_encode(encoder, "abcab ab", 8, tokens, 16), 4);
    assert_memory_equal(tokens, ((uint32_t[]){258, 256, 255 - ' ', 256}), 16);
    bpe_encoder_free(encoder);
    bpe_free(strings);
    bpe_free(pairs);
    bpe_free(split);
    bpe_free(named);
}

#define LLAMA3_SPLIT                                                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"                   \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "                                      \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"                                                     \
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define BYTES_ONLY "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SEQUENCE(split)                                                                            \
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" split "," BYTES_ONLY "]},"

/* Another pattern than GPT-2's, ids that no token has, and pieces that are not merged: all of it is
 * there again after writing and reading. */
static void test_pattern_file(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe, *again;
    write_tokenizer("split.json", SEQUENCE(LLAMA3_SPLIT),
                    ",\"ab\":256,\"abc\":258,\"xyz\":260,\"<|end_of_text|>\":300", "[\"a b\"]");
    char *text = scratch_read(scratch_path("split.json"));
    char *whole = mem_alloc(strlen(text) + 32, 1);
    char *model = strstr(text, "\"vocab\"");
    *model = '\0';
    sprintf(whole, "%s\"ignore_merges\":true,\"vocab\"%s", text, model + strlen("\"vocab\""));
    scratch_write("whole/tokenizer.json", whole);
    assert_int_equal(bpe_load(&bpe, scratch_path("whole"), &err), 0);
    assert_int_equal(bpe_pattern(bpe), PRETOKEN_LLAMA3);
    assert_false(bpe_has_gpt2_form(bpe));
    assert_int_equal(bpe_vocab_size(bpe), 301);
    assert_int_equal(bpe_end_of_text(bpe), 300);
    size_t bytes;
    bpe_token_bytes(bpe, 257, &bytes);
    assert_int_equal(bytes, 0);

    /* abc and xyz are tokens as pieces only; "\tab" is one piece, which no token is. */
    uint32_t tokens[16];
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    static const uint32_t expected[] = {258, 255 - '!', 260,        255 - '!',
                                        256, 255 - 'd', 255 - '\t', 256};
    assert_int_equal(bpe_encode(encoder, "abc", 3, tokens, 16), 1);
    assert_int_equal(bpe_encode(encoder, "abc!xyz", 7, tokens, 16), 5);
    assert_int_equal(tokens[0], 258);
    assert_int_equal(bpe_encode(encoder, "abd\tab", 6, tokens, 16), 4);
    assert_memory_equal(tokens, expected + 4, 4 * sizeof(*tokens));
    bpe_encoder_free(encoder);

    assert_int_equal(file_make_dirs(scratch_path("whole2"), &err), 0);
    assert_int_equal(bpe_save(bpe, scratch_path("whole2"), &err), 0);
    assert_int_equal(bpe_load(&again, scratch_path("whole2"), &err), 0);
    assert_int_equal(bpe_hash(again), bpe_hash(bpe));
    assert_int_equal(bpe_pattern(again), PRETOKEN_LLAMA3);
    /* vocab.json and merges.txt could not say all this. */
    assert_int_equal(bpe_save_gpt2(bpe, scratch_path("whole2"), &err), 0);
    assert_false(file_exists(scratch_path("whole2/merges.txt")));
    bpe_free(again);
    bpe_free(bpe);
    mem_free(whole);
    free(text);
}

static void test_gpt2_form(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe = train_on_poem(), *again;
    assert_int_equal(file_make_dirs(scratch_path("form"), &err), 0);
    assert_int_equal(bpe_save_gpt2(bpe, scratch_path("form"), &err), 0);
    assert_int_equal(bpe_load(&again, scratch_path("form"), &err), 0);
    assert_int_equal(bpe_hash(again), bpe_hash(bpe));
    bpe_free(again);
    bpe_free(bpe);
}

/* ---------------------------------------------------------------------------------------------
 * Lists of ranks
 * ------------------------------------------------------------------------------------------- */

#define LISTED 50256 /* as many as GPT-2 has, by which the list is known */

/* Token number id: the bytes, then words of 2, 3 and 4 letters. */
static size_t listed_token(uint32_t id, char text[4])
{
    if (id < 256) {
        text[0] = (char)(255 - id);
        return 1;
    }
    uint32_t left = id - 256, bytes = 2;
    for (uint32_t words = 26 * 26; left >= words; words *= 26, bytes++)
        left -= words;
    for (uint32_t i = 0; i < bytes; i++, left /= 26)
        text[i] = (char)('a' + left % 26);
    return bytes;
}

static void print_base64(FILE *to, const char *text, size_t bytes)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < bytes; i += 3) {
        uint32_t bits = 0;
        for (size_t j = 0; j < 3; j++)
            bits = bits << 8 | (i + j < bytes ? (uint8_t)text[i + j] : 0);
        for (size_t j = 0; j < 4; j++)
            fputc(i + j <= bytes ? digits[bits >> (18 - 6 * j) & 63] : '=', to);
    }
}

static void write_list(const char *name, uint32_t count)
{
    FILE *file = fopen(scratch_path(name), "wb");
    assert_non_null(file);
    for (uint32_t id = 0; id < count; id++) {
        char text[4];
        print_base64(file, text, listed_token(id, text));
        fprintf(file, " %u\n", id);
    }
    assert_int_equal(fclose(file), 0);
}

/* As tiktoken has it: two neighbours whose bytes together are a token, the lowest first. */
static size_t plain_by_ranks(const struct bpe *bpe, const char *text, size_t bytes,
                             uint32_t *tokens)
{
    size_t ends[64], count = bytes;
    assert_true(bytes <= 64);
    for (size_t i = 0; i < bytes; i++)
        ends[i] = i + 1;
    for (;;) {
        uint32_t best = BPE_NO_TOKEN;
        size_t at = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            size_t start = i == 0 ? 0 : ends[i - 1];
            uint32_t token = bpe_table_find_token(bpe, text + start, ends[i + 1] - start);
            if (token < best) {
                best = token;
                at = i;
            }
        }
        if (best == BPE_NO_TOKEN)
            break;
        memmove(ends + at, ends + at + 1, (count - at - 1) * sizeof(*ends));
        count--;
    }
    for (size_t i = 0; i < count; i++) {
        size_t start = i == 0 ? 0 : ends[i - 1];
        tokens[i] = bpe_table_find_token(bpe, text + start, ends[i] - start);
    }
    return count;
}

static void test_ranks(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe, *again;
    write_list("list.tiktoken", LISTED);
    assert_int_equal(bpe_load(&bpe, scratch_path("list.tiktoken"), &err), 0);
    assert_int_equal(bpe_vocab_size(bpe), LISTED + 1);
    assert_int_equal(bpe_end_of_text(bpe), LISTED);
    assert_int_equal(bpe_pattern(bpe), PRETOKEN_GPT2);
    assert_token(bpe, 255 - 'a', "a");
    assert_token(bpe, 256, "aa");
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    for (uint64_t seed = 0; seed < 3000; seed++) {
        char text[64];
        uint32_t tokens[64], expected[64];
        size_t bytes = 5 + seed % 60; /* longer than any token: nothing is taken whole */
        for (size_t i = 0; i < bytes; i++)
            text[i] = (char)('a' + rng_below(seed, 1, i, seed % 2 == 0 ? 26 : 2));
        size_t count = bpe_encode(encoder, text, bytes, tokens, 64);
        assert_int_equal(count, plain_by_ranks(bpe, text, bytes, expected));
        assert_memory_equal(tokens, expected, count * sizeof(*tokens));
    }
    bpe_encoder_free(encoder);
    assert_int_equal(file_make_dirs(scratch_path("listed"), &err), 0);
    assert_int_equal(bpe_save(bpe, scratch_path("listed"), &err), 0);
    assert_int_equal(bpe_load(&again, scratch_path("listed"), &err), 0);
    assert_int_equal(bpe_hash(again), bpe_hash(bpe));
    bpe_free(again);
    bpe_free(bpe);
}

static void refuse_file(const char *name, const char *why)
{
    struct err err;
    struct bpe *bpe;
    assert_true(bpe_load(&bpe, scratch_path(name), &err) < 0);
    assert_null(bpe);
    assert_null(strchr(err.message, '\n'));
    if (strstr(err.message, why) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, why);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *head, *tokens, *merges, *why;
    } cases[] = {
        {PLAIN_PRE ",", FEW_TOKENS, "[\"a b\",\"a b\"]", "merge 2 is there twice"},
        {PLAIN_PRE ",", FEW_TOKENS, "[\"a c\"]", "merge 1 names a token"},
        {PLAIN_PRE ",", FEW_TOKENS, "[\"ab\"]", "merge 1 is not two tokens"},
        {PLAIN_PRE ",", FEW_TOKENS, "[\"a  b\"]", "merge 1 is not two tokens"},
        {PLAIN_PRE ",", FEW_TOKENS, "[\"a \u0259\"]", "merge 1 is not in GPT-2's byte form"},
        {PLAIN_PRE ",", FEW_TOKENS, "[[\"a\"]]", "merge 1 is neither"},
        {PLAIN_PRE ",", FEW_TOKENS, "[7]", "merge 1 is neither"},
        {PLAIN_PRE ",", ",\"ab\":5000", "[]", "has the id 5000"},
        {PLAIN_PRE ",", ",\"ab\":-1", "[]", "has the id -1"},
        {PLAIN_PRE ",", ",\"ab\":1e99", "[]", "has the id -1"},
        {PLAIN_PRE ",", ",\"ab\":7", "[]", "have the same id 7"},
        {PLAIN_PRE ",", ",\"\u2581a\":256", "[]", "not in GPT-2's byte form"},
        {PLAIN_PRE ",", ",\"\":256", "[]", "is no token"},
        {"", FEW_TOKENS, "[]", "cuts text by another rule"},
        {"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true},", FEW_TOKENS, "[]",
         "add_prefix_space"},
        {SEQUENCE(
             "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"Isolated\"}"),
         FEW_TOKENS, "[]", "cuts text by another rule"},
        {SEQUENCE(BYTES_ONLY), FEW_TOKENS, "[]", "cuts text by another rule"},
        {"\"pre_tokenizer\":" BYTES_ONLY ",", FEW_TOKENS, "[]", "cuts text by another rule"},
        {PLAIN_PRE ",\"normalizer\":{\"type\":\"NFC\"},", FEW_TOKENS, "[]", "normalizer"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_tokenizer("refused.json", cases[i].head, cases[i].tokens, cases[i].merges);
        refuse_file("refused.json", cases[i].why);
        refuse_file("refused.json", "refused.json");
    }
    refuse_file("missing.json", "no tokenizer at");
    write_list("short.tiktoken", 300);
    refuse_file("short.tiktoken", "lists 300 tokens");
    /* Ids that no token has come before the first text. */
    scratch_write("holes/vocab.json", "{\"a\":5}");
    scratch_write("holes/merges.txt", "#version: 0.2\n");
    refuse_file("holes", "has no token for the byte 0x00");
    scratch_write("bad.tiktoken", "IQ== 0\nIg== 2\n");
    refuse_file("bad.tiktoken", "line 2 has a rank");
    scratch_write("bad.tiktoken", "IQ== 0\nIQ== 1\n");
    refuse_file("bad.tiktoken", "line 2 has a token that was there before");
    scratch_write("bad.tiktoken", "IQ== 0\nI*== 1\n");
    refuse_file("bad.tiktoken", "line 2 is not a token in base64");
    scratch_write("bad.tiktoken", "IQ==\n");
    refuse_file("bad.tiktoken", "line 1 is not a token in base64");
    scratch_write("folder/readme", "x");
    refuse_file("folder", "holds no tokenizer");
    scratch_write("folder/vocab.json", "{\"a\":0}");
    refuse_file("folder", "merges.txt");
    scratch_write("folder/merges.txt", "#version\n");
    refuse_file("folder", "no token for the byte 0x00");
    scratch_write("text.json", "once upon a time");
    refuse_file("text.json", "text.json");
    scratch_write("list.json", "[1, 2]");
    refuse_file("list.json", "list.json");
    scratch_write("unigram.json", "{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 1]]}}");
    refuse_file("unigram.json", "not BPE");
}

/* One of the ways in which files go wrong; data has room for twice its bytes. */
static size_t mutate(char *data, size_t bytes, uint64_t seed)
{
    size_t at = rng_below(seed, 1, 0, bytes), span = 1 + rng_below(seed, 1, 1, 40);
    span = MIN(span, bytes - at);
    switch (rng_below(seed, 1, 2, 5)) {
    case 0: /* another byte */
        data[at] = (char)rng_u64(seed, 1, 3);
        return bytes;
    case 1: /* cut short */
        return at;
    case 2: /* something is missing */
        memmove(data + at, data + at + span, bytes - at - span);
        return bytes - span;
    case 3: /* something is there twice */
        memmove(data + at + span, data + at, bytes - at);
        return bytes + span;
    default: /* a character that JSON knows, or a digit */
        data[at] = "{}[]\",:\\0123456789- "[rng_below(seed, 1, 3, 21)];
        return bytes;
    }
}

/* Loads mutations of a file; what is still accepted must be a tokenizer that works. */
static void fuzz(const char *name, const char *load, uint64_t rounds)
{
    struct err err;
    char *whole = scratch_read(scratch_path(name));
    size_t whole_bytes = strlen(whole);
    char *data = mem_alloc(2 * whole_bytes + 64, 1);
    uint64_t refused = 0;
    for (uint64_t seed = 0; seed < rounds; seed++) {
        memcpy(data, whole, whole_bytes);
        size_t bytes = whole_bytes;
        for (uint64_t i = 0; i <= seed % 3 && bytes > 0 && bytes < 2 * whole_bytes; i++)
            bytes = mutate(data, bytes, hash_bytes(&seed, sizeof(seed), i));
        FILE *file = fopen(scratch_path(name), "wb");
        assert_non_null(file);
        assert_int_equal(fwrite(data, 1, bytes, file), bytes);
        assert_int_equal(fclose(file), 0);
        struct bpe *bpe;
        err.message[0] = '\0';
        if (bpe_load(&bpe, scratch_path(load), &err) == 0) {
            check_round_trip(bpe, poem, strlen(poem));
            bpe_free(bpe);
        } else {
            assert_true(strlen(err.message) > 10);
            assert_null(strchr(err.message, '\n'));
            refused++;
        }
    }
    scratch_write(name, whole);
    assert_true(refused > rounds / 4);
    mem_free(data);
    free(whole);
}

static void test_fuzz(void **state)
{
    (void)state;
    struct err err;
    struct bpe *bpe = train_on_poem();
    char vocab[8192], text[8194];
    assert_int_equal(file_make_dirs(scratch_path("fuzz"), &err), 0);
    assert_int_equal(bpe_save(bpe, scratch_path("fuzz"), &err), 0);
    bpe_free(bpe);
    fuzz("fuzz/tokenizer.json", "fuzz/tokenizer.json", 1500);
    print_vocab(vocab, sizeof(vocab), FEW_TOKENS);
    snprintf(text, sizeof(text), "{%s}", vocab);
    scratch_write("fuzz2/vocab.json", text);
    scratch_write("fuzz2/merges.txt", "#version: 0.2\na b\n\xc4\xa0 a\nab c\n");
    fuzz("fuzz2/vocab.json", "fuzz2", 1000);
    fuzz("fuzz2/merges.txt", "fuzz2", 1000);
    write_list("fuzz2/short.tiktoken", 300);
    fuzz("fuzz2/short.tiktoken", "fuzz2/short.tiktoken", 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train_golden),   cmocka_unit_test(test_train_ties),
        cmocka_unit_test(test_train_merged),   cmocka_unit_test(test_train_limits),
        cmocka_unit_test(test_encode_lengths), cmocka_unit_test(test_any_bytes),
        cmocka_unit_test(test_save_and_load),  cmocka_unit_test(test_forms),
        cmocka_unit_test(test_pattern_file),   cmocka_unit_test(test_gpt2_form),
        cmocka_unit_test(test_ranks),          cmocka_unit_test(test_refused),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
