/*
 * The passes of prep over the text: batches of blocks are read, worked on by all cores, and
 * finished in the order of the text. Where a document goes is decided here.
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/pretoken.h"
#include "tools/prep.h"
#include "tools/prep_state.h"
#include <stdio.h>
#include <string.h>

#define BLOCKS_PER_THREAD 4

void prep_blocks_init(struct prep *prep)
{
    prep->block_count = (uint32_t)prep->threads * BLOCKS_PER_THREAD;
    prep->blocks = mem_alloc(prep->block_count, sizeof(*prep->blocks));
    for (uint32_t i = 0; i < prep->block_count; i++) {
        struct block *block = &prep->blocks[i];
        block->text = mem_alloc(PREP_BLOCK_BYTES, 1);
        block->segments = mem_alloc(PREP_BLOCK_SEGMENTS_MAX, sizeof(*block->segments));
        block->tokens = mem_alloc(PREP_BLOCK_TOKENS_MAX, sizeof(*block->tokens));
    }
}

void prep_blocks_deinit(struct prep *prep)
{
    for (uint32_t i = 0; prep->blocks != NULL && i < prep->block_count; i++) {
        mem_free(prep->blocks[i].text);
        mem_free(prep->blocks[i].segments);
        mem_free(prep->blocks[i].tokens);
    }
    mem_free(prep->blocks);
}

static void add_segment(struct block *block, const char *text, size_t bytes, enum split_side side,
                        bool ends_document)
{
    ASSERT(block->segment_count < PREP_BLOCK_SEGMENTS_MAX &&
           bytes <= PREP_BLOCK_BYTES - block->text_bytes);
    memcpy(block->text + block->text_bytes, text, bytes);
    block->segments[block->segment_count++] =
        (struct segment){block->text_bytes, (uint32_t)bytes, 0, side, ends_document};
    block->text_bytes += (uint32_t)bytes;
}

/* Where in the piece val begins, when the text is cut in two: before white space at or before
 * tail_start, or else at the end of the piece. */
static size_t train_bytes(const struct prep *prep, const struct corpus_piece *piece)
{
    uint64_t tail_start = prep->split.tail_start;
    if (prep->position + piece->bytes <= tail_start)
        return piece->bytes;
    size_t cut = pretoken_cut(piece->text, (size_t)(tail_start - prep->position) + 1);
    return cut > 0 ? cut : piece->bytes;
}

/* Whether the document that begins is taken in this round: as often as its input is to be
 * repeated, and once more by chance for what is left of that. Val has every document once. */
static bool is_taken(const struct prep *prep, uint32_t input, uint64_t hash)
{
    if (prep->repeats == NULL)
        return true;
    if (prep->round > 0 && prep->side == SPLIT_VAL)
        return false;
    double left = prep->repeats[input] - prep->round;
    return left >= 1 || (double)hash_bytes(&hash, sizeof(hash), 2) * 0x1p-64 < left;
}

static void place_whole(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    if (piece->first) {
        uint64_t hash = hash_bytes(piece->text, piece->bytes, prep->seed);
        prep->side = split_side_of(&prep->split, hash);
        prep->taken = is_taken(prep, piece->input, hash);
    }
    if (prep->taken)
        add_segment(block, piece->text, piece->bytes, prep->side, piece->last);
}

void prep_place_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    if (prep->split.tail_start == UINT64_MAX) {
        place_whole(prep, block, piece);
    } else if (prep->side == SPLIT_VAL) {
        add_segment(block, piece->text, piece->bytes, SPLIT_VAL, piece->last);
    } else {
        size_t bytes = train_bytes(prep, piece);
        /* The document in train ends where val begins, whatever comes after. */
        bool cut = bytes < piece->bytes || prep->position + bytes > prep->split.tail_start;
        add_segment(block, piece->text, bytes, SPLIT_TRAIN, piece->last || cut);
        if (cut)
            prep->side = SPLIT_VAL;
        if (bytes < piece->bytes)
            add_segment(block, piece->text + bytes, piece->bytes - bytes, SPLIT_VAL, piece->last);
    }
}

/* The first pass: every piece is looked at, and a sample of them goes to the trainers. */
void prep_survey_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    uint64_t hash = hash_bytes(piece->text, piece->bytes, prep->seed);
    if (piece->first)
        split_notice(&prep->split, hash);
    prep->split.text_bytes += piece->bytes;
    prep->input_bytes[piece->input] += piece->bytes;
    /* The bits are mixed anew: which documents teach must not hang on which side they are on. */
    if (prep->trainers != NULL && hash_bytes(&hash, sizeof(hash), 1) <= prep->sample_below)
        add_segment(block, piece->text, piece->bytes, SPLIT_TRAIN, piece->last);
}

/* Reads into the blocks until they are full or the text ends; 0 or a negative code. *over: it has
 * ended. A batch also ends after as much text as the blocks would hold if all of it went there. */
static int fill_blocks(struct prep *prep, const struct prep_pass *pass, bool *over, struct err *err)
{
    uint64_t end = prep->position + (uint64_t)prep->block_count * PREP_BLOCK_BYTES;
    prep->blocks_used = 0;
    for (uint32_t i = 0; i < prep->block_count; i++) {
        struct block *block = &prep->blocks[i];
        block->text_bytes = block->segment_count = 0;
        /* Two segments: a piece may be cut in two. */
        while (block->segment_count + 2 <= PREP_BLOCK_SEGMENTS_MAX) {
            if (!prep->has_pending) {
                corpus_tell(&prep->corpus, &prep->pending_at);
                int code = corpus_next(&prep->corpus, &prep->pending, err);
                *over = code == 0;
                if (code <= 0)
                    return code;
                prep->has_pending = true;
            }
            if (prep->position >= end)
                return 0;
            if (prep->pending.bytes > PREP_BLOCK_BYTES - block->text_bytes)
                break;
            pass->place(prep, block, &prep->pending);
            prep->position += prep->pending.bytes;
            prep->documents_read += prep->pending.last;
            prep->has_pending = false;
            prep->blocks_used = i + 1;
        }
    }
    return 0;
}

/* Adds the time since *since_ns to a stage, and moves that to now. */
static void note_stage(struct prep *prep, enum prep_stage stage, uint64_t *since_ns)
{
    uint64_t now_ns = clock_ns();
    prep->stage_ns[stage] += now_ns - *since_ns;
    *since_ns = now_ns;
}

/* Reading, less what of it was decompressing and taking text out. */
static void note_reading(struct prep *prep, uint64_t *since_ns)
{
    uint64_t unpack_ns = prep->corpus.unpack_ns, convert_ns = corpus_convert_ns(&prep->corpus);
    uint64_t before = prep->stage_ns[PREP_READ];
    note_stage(prep, PREP_READ, since_ns);
    uint64_t spent = prep->stage_ns[PREP_READ] - before;
    uint64_t unpacked = MIN(unpack_ns - prep->unpack_seen_ns, spent);
    uint64_t converted = MIN(convert_ns - prep->convert_seen_ns, spent - unpacked);
    prep->stage_ns[PREP_READ] -= unpacked + converted;
    prep->stage_ns[PREP_UNPACK] += unpacked;
    prep->stage_ns[PREP_CONVERT] += converted;
    prep->unpack_seen_ns = unpack_ns;
    prep->convert_seen_ns = convert_ns;
}

/* "1203 documents/s, tokenizing binds" */
static void show_progress(struct prep *prep, struct log_progress *progress, double done,
                          const uint64_t before_ns[PREP_STAGES])
{
    char note[128];
    double seconds = (double)(clock_ns() - progress->start_ns) * 1e-9;
    double megabytes = (double)prep->position / 1e6;
    int binds = 0;
    for (int i = 1; i < PREP_STAGES; i++)
        if (prep->stage_ns[i] - before_ns[i] > prep->stage_ns[binds] - before_ns[binds])
            binds = i;
    uint64_t documents = prep->documents_read - prep->documents_before;
    double rate = (double)documents / MAX(seconds, 1e-9);
    int used = rate >= 1 ? snprintf(note, sizeof(note), "%.0f documents/s, ", rate) : 0;
    snprintf(note + used, sizeof(note) - (size_t)used, "%s binds", prep_stage_name(binds));
    /* How much text the rest of the files holds is known only when it was read. */
    progress->total_units = done > 0 ? megabytes / done : 0;
    log_progress_update(progress, megabytes, note);
}

/* Batches of blocks, the pass's task on each block by all threads, then its finish in order. */
static int run_batches(struct prep *prep, const struct prep_pass *pass,
                       struct log_progress *progress, struct err *err)
{
    uint64_t before_ns[PREP_STAGES], since_ns = clock_ns();
    memcpy(before_ns, prep->stage_ns, sizeof(before_ns));
    bool over = false;
    while (!over) {
        int code = fill_blocks(prep, pass, &over, err);
        note_reading(prep, &since_ns);
        if (code != 0)
            return code;
        if (pass->task != NULL && prep->blocks_used > 0)
            pool_run(prep->pool, pass->task, prep, prep->blocks_used);
        note_stage(prep, PREP_COMPUTE, &since_ns);
        code = pass->finish != NULL ? pass->finish(prep, err) : 0;
        if (code == 0)
            code = prep_pause(prep, err);
        note_stage(prep, PREP_WRITE, &since_ns);
        if (code != 0)
            return code;
        double done = corpus_done(&prep->corpus);
        show_progress(prep, progress, done < 0 ? 0 : (prep->round + done) / pass->rounds,
                      before_ns);
    }
    return 0;
}

/* To the beginning of the text, or where a process before this one came to. */
static int begin_round(struct prep *prep, struct err *err)
{
    const struct prep_mark *mark = &prep->mark;
    if (!prep->goes_on)
        return corpus_rewind(&prep->corpus, err);
    prep->goes_on = false;
    return mark->phase == PREP_READING
               ? corpus_resume(&prep->corpus, &mark->at, mark->examples, false, err)
               : corpus_seek(&prep->corpus, &mark->at, err);
}

int prep_pass_run(struct prep *prep, const struct prep_pass *pass, struct err *err)
{
    const struct prep_mark nothing = {.side = SPLIT_TRAIN}, *mark = &nothing;
    struct log_progress progress;
    int code = 0;
    if (prep->goes_on)
        mark = &prep->mark;
    prep->has_pending = false;
    prep->position = mark->position;
    prep->documents_read = prep->documents_before = mark->documents_read;
    prep->side = mark->side;
    prep->taken = mark->taken;
    log_progress_start(&progress, pass->label, "MB", 0);
    progress.start_units = (double)prep->position / 1e6;
    for (prep->round = mark->round; code == 0 && prep->round < pass->rounds; prep->round++) {
        code = begin_round(prep, err);
        if (code == 0)
            code = run_batches(prep, pass, &progress, err);
    }
    if (code == 0)
        corpus_tell(&prep->corpus, &prep->surveyed);
    log_progress_end(&progress);
    return code;
}

void prep_mark_pass(const struct prep *prep, struct prep_mark *mark)
{
    if (prep->has_pending)
        mark->at = prep->pending_at;
    else
        corpus_tell(&prep->corpus, &mark->at);
    mark->position = prep->position;
    mark->documents_read = prep->documents_read;
    mark->round = prep->round;
    mark->side = prep->side;
    mark->taken = prep->taken;
}
