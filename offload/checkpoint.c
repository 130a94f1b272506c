#include "offload/checkpoint.h"

#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/watch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

#define MANIFEST_BYTES_MAX GIB
/* A manifest begins so; then come the digits of the hash of all that follows them. */
#define MANIFEST_HEAD  "{\"version\": 2, \"hash\": \""
#define HASH_DIGITS    16
#define SUM_TEXT_BYTES 20 /* "16 digits", and a line end now and then */
/* Of all paths, every byte as \u0012, with their shares. */
#define PATHS_TEXT_MAX (STRIPE_DRIVES_MAX * (6 * FILE_PATH_MAX + 16))

void checkpoint_init(struct checkpoint *checkpoint, const char *run_dir,
                     const struct layout *layout)
{
    *checkpoint = (struct checkpoint){0};
    ASSERT(strlen(run_dir) < sizeof(checkpoint->run_dir));
    strcpy(checkpoint->run_dir, run_dir);
    checkpoint->text_max =
        PATHS_TEXT_MAX + 1024 + (size_t)layout->chunk_count * PLANE_COUNT * SUM_TEXT_BYTES;
    checkpoint->text = mem_alloc(checkpoint->text_max, 1);
    /* The pages are counted as the program's own: touch them now. */
    memset(checkpoint->text, ' ', checkpoint->text_max);
}

int checkpoint_watch(struct checkpoint *checkpoint, struct err *err)
{
    return watch_open(&checkpoint->watch, WATCH_PATIENCE_NS, err);
}

/* Over a flush or a manifest's replacement. */
static void begin_watch(const struct checkpoint *checkpoint, const struct tier *tier)
{
    char text[512];
    if (checkpoint->watch)
        watch_begin(checkpoint->watch,
                    "the drive has not answered for %d s while a commit was flushed to %s and its "
                    "manifest written in %s; %s",
                    (int)(WATCH_PATIENCE_NS / 1000000000),
                    stripe_files_text(&tier->files, text, sizeof(text)), checkpoint->run_dir,
                    tier_commit_note(tier));
}

static void end_watch(const struct checkpoint *checkpoint)
{
    if (checkpoint->watch)
        watch_end(checkpoint->watch);
}

void checkpoint_deinit(struct checkpoint *checkpoint)
{
    watch_close(checkpoint->watch);
    mem_free(checkpoint->text);
    *checkpoint = (struct checkpoint){0};
}

/* Appends; there is room by construction. */
__attribute__((format(printf, 3, 4))) static void append(struct checkpoint *checkpoint,
                                                         size_t *used, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int written =
        vsnprintf(checkpoint->text + *used, checkpoint->text_max - *used, format, arguments);
    va_end(arguments);
    ASSERT(written >= 0 && (size_t)written < checkpoint->text_max - *used);
    *used += (size_t)written;
}

/* A path as JSON text. A path is bytes, and JSON knows only characters: every byte becomes the
 * character of its number, since bytes that are no UTF-8 would make a manifest that no parser
 * takes. */
static void append_path(struct checkpoint *checkpoint, size_t *used, const char *path)
{
    append(checkpoint, used, "\"");
    for (const char *c = path; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x80)
            append(checkpoint, used, "\\u%04x", (unsigned char)*c);
        else
            append(checkpoint, used, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    append(checkpoint, used, "\"");
}

/* The bytes again, from the parser's UTF-8; false when some character has no byte. */
static bool decode_path(char path[FILE_PATH_MAX], const char *text)
{
    size_t used = 0;
    for (const unsigned char *c = (const unsigned char *)text; *c && used < FILE_PATH_MAX; c++) {
        bool two = (*c & 0xfe) == 0xc2;
        if (*c >= 0x80 && !two)
            return false;
        path[used++] = (char)(two ? c[0] << 6 | (c[1] & 0x3f) : c[0]);
        c += two;
    }
    if (used == FILE_PATH_MAX)
        return false;
    path[used] = '\0';
    return true;
}

/* The digits that belong behind MANIFEST_HEAD in this text. */
static void hash_manifest(char digits[HASH_DIGITS + 1], const char *text, size_t bytes)
{
    size_t hashed = sizeof(MANIFEST_HEAD) - 1 + HASH_DIGITS;
    ASSERT(bytes >= hashed);
    snprintf(digits, HASH_DIGITS + 1, "%016" PRIx64, hash_bytes(text + hashed, bytes - hashed, 0));
}

/* What a manifest calls a state file: one in the run's own folder goes by its name alone, so that
 * the folder can be moved or copied as a whole and a copy never means the original's state. */
static const char *recorded_path(const char *state_path)
{
    const char *slash = strrchr(state_path, '/');
    const char *name = slash ? slash + 1 : state_path;
    return strcmp(name, CHECKPOINT_STATE_FILE) == 0 ? name : state_path;
}

/* A path, or for several drives a list of [path, share]. */
static void append_files(struct checkpoint *checkpoint, size_t *used,
                         const struct stripe_files *files)
{
    if (files->count == 1) {
        append_path(checkpoint, used, recorded_path(files->path[0]));
        return;
    }
    for (uint32_t d = 0; d < files->count; d++) {
        append(checkpoint, used, d ? ", [" : "[[");
        append_path(checkpoint, used, recorded_path(files->path[d]));
        append(checkpoint, used, ", %u]", files->share[d]);
    }
    append(checkpoint, used, "]");
}

static size_t write_manifest(struct checkpoint *checkpoint, const struct tier *tier, uint32_t slot,
                             bool open, const struct stripe_files *files)
{
    const struct layout *layout = tier->layout;
    uint32_t count = layout->chunk_count * PLANE_COUNT;
    size_t used = 0;
    append(checkpoint, &used,
           MANIFEST_HEAD "%*s\", \"step\": %" PRIu64 ", \"tokens\": %" PRIu64
                         ", \"slot\": %u%s, \"parameters\": %" PRIu64 ", \"moments\": \"%s\""
                         ",\n\"weights_hash\": \"%016" PRIx64 "\",\n\"state\": ",
           HASH_DIGITS, "", checkpoint->step, checkpoint->tokens, slot, open ? ", \"open\": 1" : "",
           layout->real_parameters, moments_name[layout->moments], checkpoint->weights_hash);
    append_files(checkpoint, &used, files);
    append(checkpoint, &used, ",\n\"sums\": [");
    for (uint32_t i = 0; i < count; i++)
        append(checkpoint, &used, "%s\"%016" PRIx64 "\"", i ? "," : "", tier->plane_sums[i]);
    append(checkpoint, &used, "]}\n");
    char digits[HASH_DIGITS + 1];
    hash_manifest(digits, checkpoint->text, used);
    memcpy(checkpoint->text + sizeof(MANIFEST_HEAD) - 1, digits, HASH_DIGITS);
    return used;
}

static int flush_and_name(struct checkpoint *checkpoint, struct tier *tier, struct err *err)
{
    checkpoint->weights_hash = tier_weights_hash(tier);
    char path[FILE_PATH_MAX];
    /* A failed flush is never tried again: the kernel may have dropped the pages it could not
     * write. */
    int result = tier_flush(tier, err);
    if (result == 0)
        result = file_join(path, checkpoint->run_dir, CHECKPOINT_MANIFEST_FILE, err);
    if (result)
        return result;
    size_t bytes = write_manifest(checkpoint, tier, tier_open_slot(tier), false, &tier->files);
    return file_replace(path, checkpoint->text, bytes, err);
}

int checkpoint_commit(struct checkpoint *checkpoint, struct tier *tier, struct err *err)
{
    begin_watch(checkpoint, tier);
    int result = flush_and_name(checkpoint, tier, err);
    end_watch(checkpoint);
    if (result)
        return result;
    tier->committed_slot = (int)tier_open_slot(tier);
    tier->overwriting = false;
    checkpoint->committed_step = checkpoint->step;
    return 0;
}

int checkpoint_open_commit(struct checkpoint *checkpoint, struct tier *tier, struct err *err)
{
    if (tier->slots != 1 || tier->committed_slot < 0 || tier->overwriting)
        return 0;
    char path[FILE_PATH_MAX];
    int result = file_join(path, checkpoint->run_dir, CHECKPOINT_MANIFEST_FILE, err);
    if (result)
        return result;
    /* The step is the commit's, not that of the one to come, which the trainer may have set. */
    uint64_t step = checkpoint->step;
    checkpoint->step = checkpoint->committed_step;
    size_t bytes = write_manifest(checkpoint, tier, 0, true, &tier->files);
    checkpoint->step = step;
    begin_watch(checkpoint, tier);
    result = file_replace(path, checkpoint->text, bytes, err);
    end_watch(checkpoint);
    if (result == 0)
        tier->overwriting = true;
    return result;
}

/* Up to `bytes` from one file to another without passing through our memory; what was copied, or
 * -1. copy_file_range shares blocks where it can, but refuses another kind of
 * file system, where the run and its NVMe folder may well be; sendfile goes everywhere. */
static ssize_t copy_range(int in, uint64_t in_offset, int out, uint64_t out_offset, uint64_t bytes)
{
    off_t from = (off_t)in_offset, to = (off_t)out_offset;
    ssize_t n = copy_file_range(in, &from, out, &to, bytes, 0);
    if (n >= 0 || (errno != EXDEV && errno != EINVAL && errno != EOPNOTSUPP && errno != ENOSYS))
        return n;
    return lseek(out, (off_t)out_offset, SEEK_SET) < 0 ? -1 : sendfile(out, in, &from, bytes);
}

/* Bytes of the committed slot that lie together on a drive, and will in the copy. */
struct piece {
    uint32_t drive;
    uint64_t from, to, bytes; /* offsets in the drive's file and in the copy */
};

/* The piece that begins with this chunk; moves on to the chunk behind it. */
static struct piece next_piece(const struct tier *tier, uint32_t *chunk)
{
    const struct layout *layout = tier->layout;
    const struct stripe *stripe = &tier->stripe;
    uint32_t slot = (uint32_t)tier->committed_slot, d = stripe->drive[*chunk];
    struct piece piece = {
        .drive = d,
        .from = stripe_plane_offset(stripe, layout, slot, *chunk, 0),
        .to = slot * layout->slot_bytes + layout->chunks[*chunk].offset,
    };
    for (; *chunk < layout->chunk_count && stripe->drive[*chunk] == d; ++*chunk)
        piece.bytes += layout_state_bytes(layout, layout->chunks[*chunk].count);
    return piece;
}

static int copy_piece(const struct piece *piece, int in, int out)
{
    for (uint64_t done = 0; done < piece->bytes;) {
        ssize_t n = copy_range(in, piece->from + done, out, piece->to + done, piece->bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : EIO;
        done += (uint64_t)n;
    }
    return 0;
}

/* Copies the committed slot into one file, where the layout has its chunks. */
static int copy_slot(const struct tier *tier, const char *path, struct err *err)
{
    int in[STRIPE_DRIVES_MAX], out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int result =
        out < 0 || ftruncate(out, (off_t)(tier->slots * tier->layout->slot_bytes)) != 0 ? errno : 0;
    for (uint32_t d = 0; d < tier->files.count; d++) {
        in[d] = open(tier->files.path[d], O_RDONLY | O_CLOEXEC);
        if (in[d] < 0 && result == 0)
            result = errno;
    }
    for (uint32_t c = 0; c < tier->layout->chunk_count && result == 0;) {
        struct piece piece = next_piece(tier, &c);
        result = copy_piece(&piece, in[piece.drive], out);
    }
    if (result == 0 && fsync(out) != 0)
        result = errno;
    for (uint32_t d = 0; d < tier->files.count; d++)
        if (in[d] >= 0)
            close(in[d]);
    if (out >= 0)
        close(out);
    if (result == 0)
        return 0;
    unlink(path);
    return err_set_errno(err, result, "cannot keep a copy of the commit in %s", path);
}

static int link_file(const char *from_dir, const char *to_dir, const char *name, struct err *err)
{
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX];
    int result = file_join(from, from_dir, name, err);
    if (result == 0)
        result = file_join(to, to_dir, name, err);
    if (result == 0) {
        unlink(to);
        if (link(from, to) != 0)
            result = err_set_errno(err, errno, "cannot link %s to %s", from, to);
    }
    return result;
}

static int kept_dir(const struct checkpoint *checkpoint, uint64_t step, char dir[FILE_PATH_MAX],
                    struct err *err)
{
    char name[64];
    snprintf(name, sizeof(name), "kept/step-%08" PRIu64, step);
    return file_join(dir, checkpoint->run_dir, name, err);
}

bool checkpoint_is_kept(const struct checkpoint *checkpoint, uint64_t step)
{
    char dir[FILE_PATH_MAX], manifest[FILE_PATH_MAX];
    struct err ignored;
    return kept_dir(checkpoint, step, dir, &ignored) == 0 &&
           file_join(manifest, dir, CHECKPOINT_MANIFEST_FILE, &ignored) == 0 &&
           file_exists(manifest);
}

int checkpoint_keep(struct checkpoint *checkpoint, const struct tier *tier, struct err *err)
{
    char dir[FILE_PATH_MAX], path[FILE_PATH_MAX], manifest[FILE_PATH_MAX];
    ASSERT(tier->committed_slot >= 0 && !tier->overwriting);
    int result = kept_dir(checkpoint, checkpoint->step, dir, err);
    if (result == 0)
        result = file_make_dirs(dir, err);
    if (result == 0)
        result = file_join(path, dir, CHECKPOINT_STATE_FILE, err);
    if (result == 0)
        result = file_join(manifest, dir, CHECKPOINT_MANIFEST_FILE, err);
    if (result)
        return result;
    /* A folder of this step from before a crash is no commit while its state is written anew. */
    unlink(manifest);
    result = copy_slot(tier, path, err);
    if (result == 0)
        result = link_file(checkpoint->run_dir, dir, "config.json", err);
    if (result == 0)
        result = link_file(checkpoint->run_dir, dir, "tokenizer.json", err);
    if (result)
        return result;
    struct stripe_files copy;
    result = stripe_files_one(&copy, path, err);
    if (result)
        return result;
    size_t bytes = write_manifest(checkpoint, tier, (uint32_t)tier->committed_slot, false, &copy);
    return file_replace(manifest, checkpoint->text, bytes, err);
}

static int damaged(const char *path, struct err *err)
{
    return err_set(err, ERR_CORRUPT,
                   "%s is damaged: it does not agree with its own checksum or misses a member",
                   path);
}

/* Whether the text is to the byte what write_manifest made. */
static bool is_whole(const char *text, size_t bytes)
{
    char digits[HASH_DIGITS + 1];
    size_t head = sizeof(MANIFEST_HEAD) - 1;
    if (bytes < head + HASH_DIGITS || memcmp(text, MANIFEST_HEAD, head) != 0)
        return false;
    hash_manifest(digits, text, bytes);
    return memcmp(text + head, digits, HASH_DIGITS) == 0;
}

/* What append_files made; false when it is something else. */
static bool parse_files(struct stripe_files *files, const struct json_value *state)
{
    if (json_string(state)) {
        files->count = files->share[0] = 1;
        return decode_path(files->path[0], json_string(state));
    }
    size_t count = json_length(state);
    if (count < 1 || count > STRIPE_DRIVES_MAX)
        return false;
    files->count = (uint32_t)count;
    for (size_t d = 0; d < count; d++) {
        const struct json_value *drive = json_at(state, d);
        const char *path = json_string(json_at(drive, 0));
        double share = json_number(json_at(drive, 1), 0);
        if (!path || !decode_path(files->path[d], path) || !(share >= 1) ||
            share > STRIPE_SHARE_MAX)
            return false;
        files->share[d] = (uint32_t)share;
    }
    return true;
}

static int parse_manifest(struct checkpoint_manifest *manifest, const struct json_value *root,
                          const char *path, struct err *err)
{
    const struct json_value *sums = json_get(root, "sums");
    const char *hash = json_get_string(root, "weights_hash", NULL);
    int64_t step = json_get_int(root, "step", -1), slot = json_get_int(root, "slot", -1);
    size_t count = json_length(sums);
    /* Commits from before there were others do not name their kind. */
    manifest->moments = moments_find(json_get_string(root, "moments", moments_name[MOMENTS_FP32]));
    if (!hash || manifest->moments == MOMENTS_KIND_COUNT || step < 0 || slot < 0 || slot > 1 ||
        count % PLANE_COUNT || count == 0 ||
        !parse_files(&manifest->files, json_get(root, "state")))
        return damaged(path, err);
    manifest->step = (uint64_t)step;
    manifest->tokens = (uint64_t)json_get_int(root, "tokens", 0);
    manifest->parameters = (uint64_t)json_get_int(root, "parameters", 0);
    manifest->slot = (uint32_t)slot;
    manifest->open = json_get_int(root, "open", 0) != 0;
    manifest->weights_hash = strtoull(hash, NULL, 16);
    manifest->chunk_count = (uint32_t)(count / PLANE_COUNT);
    manifest->plane_sums = mem_alloc(count, sizeof(*manifest->plane_sums));
    for (size_t i = 0; i < count; i++) {
        const char *text = json_string(json_at(sums, i));
        if (!text)
            return damaged(path, err);
        manifest->plane_sums[i] = strtoull(text, NULL, 16);
    }
    return 0;
}

static int read_manifest(struct checkpoint_manifest *manifest, const char *path, struct err *err)
{
    char *text;
    size_t bytes;
    int result = file_read_all(path, MANIFEST_BYTES_MAX, &text, &bytes, err);
    if (result)
        return result;
    struct json_value *root = json_parse(text, bytes, path, err);
    if (!root)
        result = err->code;
    else if (json_get_int(root, "version", 0) != 2)
        result = err_set(err, ERR_INPUT, "%s was written by another version of spillway", path);
    else if (!is_whole(text, bytes))
        result = damaged(path, err);
    else
        result = parse_manifest(manifest, root, path, err);
    json_free(root);
    mem_free(text);
    return result;
}

/* Makes a name alone (see recorded_path) a path. */
static int resolve_files(struct stripe_files *files, const char *run_dir, struct err *err)
{
    char name[FILE_PATH_MAX], real[PATH_MAX];
    for (uint32_t d = 0; d < files->count; d++) {
        if (strchr(files->path[d], '/'))
            continue;
        strcpy(name, files->path[d]);
        if (!realpath(run_dir, real))
            return err_set_errno(err, errno, "cannot resolve %s", run_dir);
        int result = file_join(files->path[d], real, name, err);
        if (result)
            return result;
    }
    return 0;
}

int checkpoint_load(struct checkpoint_manifest *manifest, const char *run_dir,
                    const struct layout *layout, struct err *err)
{
    *manifest = (struct checkpoint_manifest){0};
    char path[FILE_PATH_MAX];
    int result = file_join(path, run_dir, CHECKPOINT_MANIFEST_FILE, err);
    if (result)
        return result;
    if (!file_exists(path))
        return 1;
    result = read_manifest(manifest, path, err);
    if (result == 0)
        result = resolve_files(&manifest->files, run_dir, err);
    if (result == 0 && layout &&
        (manifest->chunk_count != layout->chunk_count ||
         manifest->parameters != layout->real_parameters))
        result = err_set(err, ERR_INPUT,
                         "the commit in %s belongs to another model: it has %" PRIu64
                         " parameters, this one %" PRIu64 ": choose another --out",
                         run_dir, manifest->parameters, layout->real_parameters);
    if (result == 0 && layout && manifest->moments != layout->moments)
        result =
            err_set(err, ERR_INPUT,
                    "the commit in %s has moments in %s, not in %s: give --optimizer-state %s, "
                    "or choose another --out",
                    run_dir, moments_name[manifest->moments], moments_name[layout->moments],
                    moments_name[manifest->moments]);
    if (result)
        checkpoint_unload(manifest);
    return result;
}

void checkpoint_unload(struct checkpoint_manifest *manifest)
{
    mem_free(manifest->plane_sums);
    *manifest = (struct checkpoint_manifest){0};
}

/* The name of the newest folder below kept/ that holds a commit, or "". */
static void find_newest_kept(const char *run_dir, char newest[NAME_MAX + 1])
{
    char kept[FILE_PATH_MAX], dir[FILE_PATH_MAX], manifest[FILE_PATH_MAX];
    struct err ignored;
    newest[0] = 0;
    DIR *folder = file_join(kept, run_dir, "kept", &ignored) ? NULL : opendir(kept);
    if (!folder)
        return;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strncmp(entry->d_name, "step-", 5) == 0 && strcmp(entry->d_name, newest) > 0 &&
            file_join(dir, kept, entry->d_name, &ignored) == 0 &&
            file_join(manifest, dir, CHECKPOINT_MANIFEST_FILE, &ignored) == 0 &&
            file_exists(manifest))
            strcpy(newest, entry->d_name);
    closedir(folder);
}

int checkpoint_refuse_open(const struct checkpoint_manifest *manifest, const char *run_dir,
                           struct err *err)
{
    char newest[NAME_MAX + 1];
    find_newest_kept(run_dir, newest);
    if (newest[0])
        return err_set(
            err, ERR_INPUT,
            "%s has one slot of state (--nvme-slots 1), and the commit of step %" PRIu64
            " in it has been overwritten in part: a run that still trains makes another, "
            "one that was killed goes on from its last copy: spillway train --resume "
            "--out %s/kept/%s",
            run_dir, manifest->step, run_dir, newest);
    return err_set(
        err, ERR_INPUT,
        "%s has one slot of state (--nvme-slots 1), and the commit of step %" PRIu64
        " in it has been overwritten in part: a run that still trains makes another, one "
        "that was killed is lost, since --keep-every made no copy: begin anew with "
        "another --out",
        run_dir, manifest->step);
}

int checkpoint_reader_open(struct checkpoint_reader *reader, const char *run_dir,
                           const struct layout *layout, struct err *err)
{
    *reader = (struct checkpoint_reader){.layout = layout};
    for (uint32_t d = 0; d < STRIPE_DRIVES_MAX; d++)
        reader->fds[d] = -1;
    int result = checkpoint_load(&reader->manifest, run_dir, layout, err);
    if (result == 1)
        return err_set(err, ERR_INPUT,
                       "%s has no commit yet: the first one comes after --checkpoint-every steps "
                       "or at the end",
                       run_dir);
    if (result == 0 && reader->manifest.open) {
        result = checkpoint_refuse_open(&reader->manifest, run_dir, err);
        checkpoint_unload(&reader->manifest);
    }
    if (result)
        return result;
    ASSERT(strlen(run_dir) < sizeof(reader->run_dir));
    strcpy(reader->run_dir, run_dir);
    const struct stripe_files *files = &reader->manifest.files;
    stripe_init(&reader->stripe, layout, files);
    for (uint32_t d = 0; d < files->count; d++) {
        reader->fds[d] = open(files->path[d], O_RDONLY | O_CLOEXEC);
        if (reader->fds[d] < 0)
            return err_set_errno(err, errno, "cannot open %s, which holds the state of %s",
                                 files->path[d], run_dir);
    }
    return 0;
}

void checkpoint_reader_direct(struct checkpoint_reader *reader)
{
    for (uint32_t d = 0; d < reader->manifest.files.count; d++) {
        int flags = fcntl(reader->fds[d], F_GETFL);
        reader->direct[d] = flags >= 0 && fcntl(reader->fds[d], F_SETFL, flags | O_DIRECT) == 0;
    }
}

void checkpoint_reader_close(struct checkpoint_reader *reader)
{
    for (uint32_t d = 0; d < reader->manifest.files.count; d++)
        if (reader->fds[d] >= 0)
            close(reader->fds[d]);
    stripe_deinit(&reader->stripe);
    checkpoint_unload(&reader->manifest);
}

static bool replaced_meanwhile(const struct checkpoint_reader *reader)
{
    struct checkpoint_manifest now;
    struct err ignored;
    int result = checkpoint_load(&now, reader->run_dir, reader->layout, &ignored);
    bool replaced = result == 0 && (now.open || now.step != reader->manifest.step);
    if (result == 0)
        checkpoint_unload(&now);
    return replaced;
}

/* A plane of a chunk into data, as it is on its drive. */
static int read_plane(struct checkpoint_reader *reader, uint32_t drive, uint64_t offset,
                      uint64_t bytes, uint8_t *data, struct err *err)
{
    const char *path = reader->manifest.files.path[drive];
    int fd = reader->fds[drive];
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, data + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        /* A direct read ends within a block at the end of the file only. */
        if (n < 0 && reader->direct[drive] && done % IO_ALIGN)
            n = 0;
        if (n < 0)
            return err_set_errno(err, errno, "cannot read %s at offset %" PRIu64, path,
                                 offset + done);
        if (n == 0)
            return err_set(err, ERR_CORRUPT, "%s ends at offset %" PRIu64 ", too early", path,
                           offset + done);
        done += (uint64_t)n;
    }
    /* What was read once is not needed again: leave the page cache to others. */
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
    return 0;
}

int checkpoint_read(struct checkpoint_reader *reader, uint32_t chunk, uint32_t first,
                    uint32_t count, void *data, struct err *err)
{
    const struct layout *layout = reader->layout;
    const struct checkpoint_manifest *manifest = &reader->manifest;
    uint32_t drive = reader->stripe.drive[chunk];
    uint8_t *to = data;
    for (uint32_t p = first; p < first + count; p++) {
        uint64_t bytes = layout_plane_bytes(layout, layout->chunks[chunk].count, p);
        uint64_t offset = stripe_plane_offset(&reader->stripe, layout, manifest->slot, chunk, p);
        int result = read_plane(reader, drive, offset, bytes, to, err);
        if (result)
            return result;
        if (tier_plane_sum(layout, chunk, p, to) != manifest->plane_sums[chunk * PLANE_COUNT + p]) {
            if (replaced_meanwhile(reader))
                return 1;
            return err_set(err, ERR_CORRUPT,
                           "%s is damaged: at offset %" PRIu64
                           " the checksum of chunk %u (%s) is wrong",
                           manifest->files.path[drive], offset, chunk, layout_plane_name[p]);
        }
        to += bytes;
    }
    return 0;
}
