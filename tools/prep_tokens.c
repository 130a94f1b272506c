#include "tools/prep_tokens.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/file.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Tokens of a document that say which side it is on. */
#define HASHED_TOKENS 4096

static bool names_val(const char *path)
{
    const char *slash = strrchr(path, '/');
    return strstr(slash != NULL ? slash + 1 : path, "val") != NULL;
}

static enum split_side choose_side(const struct prep_tokens *prep, bool by_name, const char *path,
                                   const struct foreign_piece *piece)
{
    if (by_name)
        return names_val(path) ? SPLIT_VAL : SPLIT_TRAIN;
    size_t bytes = MIN(piece->count, (size_t)HASHED_TOKENS) * sizeof(piece->tokens[0]);
    double share = (double)hash_bytes(piece->tokens, bytes, prep->seed) * 0x1p-64;
    return share < prep->val_fraction ? SPLIT_VAL : SPLIT_TRAIN;
}

static uint64_t text_bytes(const struct bpe *bpe, const struct foreign_piece *piece)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < piece->count; i++) {
        size_t bytes;
        bpe_token_bytes(bpe, piece->tokens[i], &bytes);
        sum += bytes;
    }
    return sum;
}

/* One piece, into the file of its document's side. */
static int take_piece(struct prep_tokens *prep, const char *path, bool by_name,
                      const struct foreign_piece *piece, struct err *err)
{
    struct prep_tokens_done *done = &prep->done;
    const uint32_t end = bpe_end_of_text(prep->bpe);
    int code = 0;
    if (!done->in_document && piece->count > 0) {
        done->in_document = true;
        done->side = choose_side(prep, by_name, path, piece);
    }
    struct shard_writer *writer = prep->writers[done->side];
    if (piece->count > 0)
        code = shard_writer_append(writer, piece->tokens, piece->count, err);
    if (code == 0 && piece->ends_document && done->in_document)
        code = shard_writer_append(writer, &end, 1, err);
    if (code != 0)
        return code;
    if (piece->ends_document && done->in_document)
        shard_writer_end_document(writer);
    done->documents += piece->ends_document && done->in_document;
    done->empty_documents += piece->ends_document && !done->in_document;
    done->in_document &= !piece->ends_document;
    done->text_bytes += text_bytes(prep->bpe, piece);
    done->pieces++;
    return prep->pause != NULL ? prep->pause(prep->pause_context, err) : 0;
}

/* One file, whose last piece ends a document, from where it was left. */
static int copy_file(struct prep_tokens *prep, struct foreign_file *file, bool by_name,
                     struct foreign_piece *piece, struct err *err)
{
    struct log_progress progress;
    uint64_t before = prep->done.pieces, tokens = 0;
    log_progress_start(&progress, file->path, "M tokens", (double)file->token_count / 1e6);
    int code;
    for (uint64_t i = 0; (code = foreign_next(file, piece, err)) == 1; i++) {
        tokens += piece->count;
        if (i < before)
            continue;
        code = take_piece(prep, file->path, by_name, piece, err);
        if (code != 0)
            break;
        log_progress_update(&progress, (double)tokens / 1e6, NULL);
    }
    log_progress_end(&progress);
    ASSERT(code != 0 || !prep->done.in_document);
    return code;
}

int prep_tokens_run(struct prep_tokens *prep, struct err *err)
{
    struct prep_tokens_done *done = &prep->done;
    bool by_name = false;
    for (size_t i = 0; i < prep->input_count; i++)
        by_name |= names_val(prep->inputs[i]);
    struct foreign_piece *piece = mem_alloc(1, sizeof(*piece));
    int code = 0;
    while (code == 0 && done->input < prep->input_count) {
        struct foreign_file file;
        code = foreign_open(&file, prep->format, prep->inputs[done->input],
                            bpe_vocab_size(prep->bpe), bpe_end_of_text(prep->bpe), err);
        if (code == 0)
            code = copy_file(prep, &file, by_name, piece, err);
        if (code == 0) {
            done->input++;
            done->pieces = 0;
            done->file_bytes += file.map_bytes;
        }
        foreign_close(&file);
    }
    mem_free(piece);
    if (code == 0 && done->empty_documents > 0)
        log_line("%" PRIu64 " documents without a token are left out.", done->empty_documents);
    if (code == 0 && done->documents == 0)
        code = err_set(err, ERR_INPUT, "there are no tokens in %s", prep->inputs[0]);
    return code;
}

int prep_tokens_choose(enum foreign_format *format, const char *name, struct err *err)
{
    *format = foreign_by_name(name);
    if (*format < FOREIGN_FORMATS || strcmp(name, "spillway") == 0)
        return 0;
    return err_set(err, ERR_USAGE,
                   "--shard-format takes spillway, nanogpt, llmc or megatron, not \"%s\"", name);
}

int prep_tokens_export(const char *dir, const char *file, enum foreign_format format,
                       uint32_t end_of_text, struct err *err)
{
    char path[FILE_PATH_MAX], stem[64];
    struct shard shard;
    if (format == FOREIGN_FORMATS)
        return 0;
    snprintf(stem, sizeof(stem), "%.*s", (int)strcspn(file, "."), file);
    int code = file_join(path, dir, file, err);
    if (code == 0)
        code = shard_open(&shard, path, err);
    if (code != 0)
        return code;
    code = foreign_write(&shard, format, end_of_text, dir, stem, err);
    shard_close(&shard);
    return code;
}
