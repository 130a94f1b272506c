#include "tools/prep_tokens.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"

#include <inttypes.h>
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

/* One file, whose last piece ends a document. */
static int copy_file(struct prep_tokens *prep, struct foreign_file *file, bool by_name,
                     struct foreign_piece *piece, struct err *err)
{
    struct shard_writer *writer = NULL; /* of the document at hand */
    struct log_progress progress;
    uint64_t done = 0;
    uint32_t end = bpe_end_of_text(prep->bpe);
    log_progress_start(&progress, file->path, "M tokens", (double)file->token_count / 1e6);
    int code;
    while ((code = foreign_next(file, piece, err)) == 1) {
        if (writer == NULL && piece->count > 0)
            writer = prep->writers[choose_side(prep, by_name, file->path, piece)];
        if (piece->count > 0)
            code = shard_writer_append(writer, piece->tokens, piece->count, err);
        if (code >= 0 && piece->ends_document && writer != NULL)
            code = shard_writer_append(writer, &end, 1, err);
        if (code < 0)
            break;
        if (piece->ends_document && writer != NULL) {
            shard_writer_end_document(writer);
            prep->documents++;
        } else if (piece->ends_document) {
            prep->empty_documents++;
        }
        if (piece->ends_document)
            writer = NULL;
        prep->text_bytes += text_bytes(prep->bpe, piece);
        done += piece->count;
        log_progress_update(&progress, (double)done / 1e6, NULL);
    }
    log_progress_end(&progress);
    ASSERT(code != 0 || writer == NULL);
    return code;
}

int prep_tokens_run(struct prep_tokens *prep, struct err *err)
{
    bool by_name = false;
    for (size_t i = 0; i < prep->input_count; i++)
        by_name |= names_val(prep->inputs[i]);
    struct foreign_piece *piece = mem_alloc(1, sizeof(*piece));
    int code = 0;
    for (size_t i = 0; code == 0 && i < prep->input_count; i++) {
        struct foreign_file file;
        code = foreign_open(&file, prep->format, prep->inputs[i], bpe_vocab_size(prep->bpe),
                            bpe_end_of_text(prep->bpe), err);
        if (code == 0)
            code = copy_file(prep, &file, by_name, piece, err);
        prep->file_bytes += file.map_bytes;
        foreign_close(&file);
    }
    mem_free(piece);
    if (code == 0 && prep->empty_documents > 0)
        log_line("%" PRIu64 " documents without a token are left out.", prep->empty_documents);
    if (code == 0 && prep->documents == 0)
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

int prep_tokens_export(const struct dataset *dataset, enum foreign_format format,
                       uint32_t end_of_text, const char *dir, struct err *err)
{
    if (format == FOREIGN_FORMATS)
        return 0;
    int code = foreign_write(&dataset->train, format, end_of_text, dir, "train", err);
    if (code == 0 && dataset->has_val)
        code = foreign_write(&dataset->val, format, end_of_text, dir, "val", err);
    return code;
}
