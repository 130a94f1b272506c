/*
 * spillway sample: a trained model goes on with a text. Writes the prompt and what follows to
 * stdout, piece by piece, as it is drawn.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/log.h"
#include "offload/infer.h"
#include "tools/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TOKENS_DEFAULT      200
#define TOKENS_MAX          ((uint64_t)1 << 24)
#define TEMPERATURE_DEFAULT 0.8
#define TOP_K_DEFAULT       50
#define UTF8_BYTES_MAX      4

struct sample {
    const char *run, *model, *prompt, *precision;
    uint64_t token_count, top_k, seed;
    double temperature;

    struct infer infer;
    uint32_t *tokens; /* owned: the prompt's, then those drawn */
    uint64_t used, prompt_count;
};

/* ---- Text that is whole ---------------------------------------------------------------------- */

/* Bytes of a character that is not complete yet: a token may end in the middle of one. */
struct utf8_writer {
    unsigned char held[UTF8_BYTES_MAX];
    size_t held_count;
};

/* How many bytes a character that begins with this one has; 0 when none does. */
static size_t utf8_length(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf)
        return 2;
    if (first >= 0xe0 && first <= 0xef)
        return 3;
    return first >= 0xf0 && first <= 0xf4 ? 4 : 0;
}

/* Whether byte may follow what is held (the Unicode Standard, table 3-7). */
static bool utf8_continues(const struct utf8_writer *writer, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xbf;
    if (writer->held_count == 1)
        switch (writer->held[0]) {
        case 0xe0:
            low = 0xa0;
            break;
        case 0xed:
            high = 0x9f;
            break;
        case 0xf0:
            low = 0x90;
            break;
        case 0xf4:
            high = 0x8f;
            break;
        }
    return byte >= low && byte <= high;
}

static void write_replacement(void)
{
    fputs("\xef\xbf\xbd", stdout);
}

/* Bytes that can be part of no character become U+FFFD, so that whatever the model draws, what is
 * written is UTF-8. */
static void utf8_byte(struct utf8_writer *writer, unsigned char byte)
{
    if (writer->held_count > 0 && !utf8_continues(writer, byte)) {
        write_replacement();
        writer->held_count = 0;
    }
    if (writer->held_count == 0 && utf8_length(byte) == 0) {
        write_replacement();
        return;
    }
    writer->held[writer->held_count++] = byte;
    if (writer->held_count == utf8_length(writer->held[0])) {
        fwrite(writer->held, 1, writer->held_count, stdout);
        writer->held_count = 0;
    }
}

static int write_token(const struct sample *sample, struct utf8_writer *writer, uint32_t token,
                       struct err *err)
{
    size_t bytes;
    const char *text = bpe_token_bytes(sample->infer.bpe, token, &bytes);
    for (size_t i = 0; i < bytes; i++)
        utf8_byte(writer, (unsigned char)text[i]);
    if (fflush(stdout) != 0)
        return err_set_errno(err, errno, "cannot write the text");
    return 0;
}

/* ---- The command ----------------------------------------------------------------------------- */

/* The prompt's tokens, with room for those that follow. Without a prompt the model begins as it
 * does after the end of a text. */
static int encode_prompt(struct sample *sample, struct err *err)
{
    size_t bytes = strlen(sample->prompt);
    uint32_t end = bpe_end_of_text(sample->infer.bpe);
    sample->tokens = mem_alloc(bytes + 1 + sample->token_count, sizeof(*sample->tokens));
    struct bpe_encoder *encoder = bpe_encoder_new(sample->infer.bpe);
    sample->used = bpe_encode(encoder, sample->prompt, bytes, sample->tokens, bytes);
    bpe_encoder_free(encoder);
    if (sample->used == 0) {
        if (end == UINT32_MAX)
            return err_set(err, ERR_INPUT,
                           "this tokenizer has no end-of-text token that could stand for an "
                           "empty prompt: give --prompt some text");
        sample->tokens[sample->used++] = end;
    }
    sample->prompt_count = sample->used;
    return 0;
}

static int draw_tokens(struct sample *sample, float *logits, struct infer_candidate *candidates,
                       struct err *err)
{
    const struct infer_sampling sampling = {
        .temperature = sample->temperature,
        .top_k = (uint32_t)sample->top_k,
        .seed = sample->seed,
    };
    struct utf8_writer writer = {0};
    uint32_t count = infer_token_count(&sample->infer);
    for (uint64_t i = 0; i < sample->token_count; i++) {
        int result = infer_logits(&sample->infer, sample->tokens, sample->used, logits, err);
        if (result)
            return result;
        uint32_t token = infer_draw(&sampling, logits, count, i, candidates);
        if (token == bpe_end_of_text(sample->infer.bpe))
            break;
        sample->tokens[sample->used++] = token;
        result = write_token(sample, &writer, token, err);
        if (result)
            return result;
    }
    return 0;
}

/* For a person who waits; a file or a pipe gets the text alone. */
static void print_speed(const struct sample *sample, double seconds)
{
    char text[LOG_BYTES_MAX];
    uint64_t drawn = sample->used - sample->prompt_count;
    if (isatty(STDERR_FILENO))
        log_line("%" PRIu64 " tokens in %s: %.1f tokens/s", drawn, log_duration(text, seconds),
                 (double)drawn / MAX(seconds, 1e-9));
}

static int write_text(struct sample *sample, struct err *err)
{
    uint64_t start_ns = clock_ns();
    uint32_t vocab = sample->infer.model.config.vocab;
    float *logits = mem_alloc(vocab, sizeof(*logits));
    struct infer_candidate *candidates = mem_alloc(vocab, sizeof(*candidates));
    fputs(sample->prompt, stdout);
    fflush(stdout);
    int result = draw_tokens(sample, logits, candidates, err);
    putchar('\n');
    if (fflush(stdout) != 0 && result == 0)
        result = err_set_errno(err, errno, "cannot write the text");
    if (result == 0)
        print_speed(sample, (double)(clock_ns() - start_ns) * 1e-9);
    mem_free(candidates);
    mem_free(logits);
    return result;
}

static int run(struct sample *sample, struct err *err)
{
    int result = infer_open(&sample->infer, sample->run, sample->model, sample->precision, err);
    if (result == 0)
        result = encode_prompt(sample, err);
    if (result == 0)
        result = write_text(sample, err);
    mem_free(sample->tokens);
    infer_close(&sample->infer);
    return result;
}

static int check_options(const struct sample *sample, struct err *err)
{
    if (!sample->run == !sample->model)
        return err_set(err, ERR_USAGE, "give one of --run RUN and --model HF_DIR");
    if (sample->token_count > TOKENS_MAX)
        return err_set(err, ERR_USAGE, "--tokens is %" PRIu64 "; it may be 0 to %" PRIu64,
                       sample->token_count, TOKENS_MAX);
    if (sample->top_k > UINT32_MAX)
        return err_set(err, ERR_USAGE, "--top-k is larger than any vocabulary; 0 means all tokens");
    return 0;
}

int sample_main(int argc, char **argv)
{
    struct sample sample = {
        .prompt = "",
        .token_count = TOKENS_DEFAULT,
        .temperature = TEMPERATURE_DEFAULT,
        .top_k = TOP_K_DEFAULT,
        .seed = 1,
    };
    const struct args_option options[] = {
        {"run", ARGS_STRING, &sample.run, "RUN",
         "a run's folder; its last commit is read, also while it is being trained", NULL},
        {"model", ARGS_STRING, &sample.model, "HF_DIR", "or a Hugging Face folder", NULL},
        {"prompt", ARGS_STRING, &sample.prompt, "TEXT",
         "what the text begins with (default: nothing)", NULL},
        {"tokens", ARGS_U64, &sample.token_count, "N",
         "stop after so many, or at the end of a text (default: 200)", NULL},
        {"temperature", ARGS_DOUBLE, &sample.temperature, "X",
         "0: always the likeliest token; 1: as the model says (default: 0.8)", NULL},
        {"top-k", ARGS_U64, &sample.top_k, "K", "draw from the K likeliest; 0: all (default: 50)",
         NULL},
        {"seed", ARGS_U64, &sample.seed, "S", "another seed, another text (default: 1)", NULL},
        {"precision", ARGS_STRING, &sample.precision, "bf16|fp32",
         "of the computation (default: that of the training)", NULL},
    };
    struct args_command args = {
        .name = "sample",
        .summary = "Lets a trained model go on with a text.",
        .usage = "(--run RUN | --model HF_DIR) [--prompt TEXT] [options]",
        .example = "spillway sample --run run --prompt \"Once upon a time\" --tokens 100",
        .options = options,
        .option_count = ARRAY_COUNT(options),
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0)
        result = check_options(&sample, &err);
    if (result == 0)
        result = run(&sample, &err);
    return commands_status(result, &err);
}
