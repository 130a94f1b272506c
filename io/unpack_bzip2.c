/*
 * bzip2 by libbz2, block by block on all threads.
 *
 * A block begins with a 48-bit magic at any bit, and needs nothing of the blocks before it. So the
 * caller's thread looks for magics and cuts the file into segments, from one magic to the next; a
 * wave of segments is decompressed by the pool, each dressed as a file of one block (the header
 * before it, the end-of-stream magic and its checksum behind it), and then given out in order. It
 * makes no difference whether the file is of one stream or of many.
 *
 * Invariants:
 * 1. A segment holds its bits from the first bit of its first byte on, without the header.
 * 2. The 48 bits of a magic may come up within a block by chance (once in some hundred TB) or
 * malice. A segment that is no block is joined with the one behind it, as long as a block can be,
 * before it is called damaged.
 * 3. libbz2 checks each block's checksum; the stream's checksum, of all blocks' ones, is checked
 *    here when its last block is given out.
 * 4. A block of long runs gives up to 46 MB. A segment gives OUT_BYTES at most to the wave; what is
 *    beyond is decompressed when it is asked for, so memory is bounded.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/unpack_codec.h"
#include <bzlib.h>
#include <string.h>

#define MAGIC_BITS  48
#define CRC_BITS    32
#define MAGIC_MASK  (((uint64_t)1 << MAGIC_BITS) - 1)
#define BLOCK_MAGIC 0x314159265359u /* pi */
#define END_MAGIC   0x177245385090u /* the square root of pi */

/* A block is at most 900,000 symbols and one of at most 20 bits each, plus its tables (about 30
 * KB): what is longer from one magic to the next is no block. */
#define SEGMENT_BYTES_MAX (2400u << 10)
/* The header "BZh9" in front; behind, the end of the stream and seven bits to a whole byte. */
#define HEADER_BYTES        4
#define TRAILER_BYTES       11
#define OUT_BYTES           (1u << 20) /* a block of 900,000 bytes without runs fits */
#define WINDOW_BYTES        (2 * (SEGMENT_BYTES_MAX + UNPACK_INPUT_BYTES))
#define SEGMENTS_PER_THREAD 4

enum segment_state { SEGMENT_RAW, SEGMENT_DONE, SEGMENT_MORE, SEGMENT_BROKEN };

struct segment {
    uint8_t *bits; /* owned; HEADER_BYTES of room, then bit_count bits (invariant 1) */
    size_t capacity;
    uint64_t bit_count;
    uint64_t position; /* of its first byte in the file */
    bool begins_stream, ends_stream, at_end;
    uint32_t stream_crc; /* where it ends a stream */
    uint8_t shift;       /* bits before its first one, until the worker has moved them away */
    enum segment_state state;
    /* Owned; open while SEGMENT_MORE. Apart, since libbz2 holds a pointer to it and segments move.
     */
    bz_stream *stream;
    uint8_t *out; /* owned [OUT_BYTES] */
    size_t out_bytes, out_used;
};

struct bzip2 {
    struct pool *pool; /* borrowed; may be NULL */
    struct segment *segments;
    uint32_t segment_count, filled, next; /* segments[next, filled) are to be given out */

    uint8_t *window; /* owned [WINDOW_BYTES]: bytes of the file from window_position on */
    size_t window_bytes;
    uint64_t window_position;
    uint64_t cursor;  /* bit of the window where a magic or a header is expected */
    bool in_stream;   /* a magic is; else a header */
    bool first_block; /* of its stream */
    bool input_end;   /* no more bytes behind the window */
    bool scan_end;    /* no more segments */
    int scan_code;    /* an error to be told after the segments before it */
    struct err scan_err;
    uint32_t stream_crc; /* of the stream that is given out */
};

/* Bit s: whether this can be the third (fourth) byte of a magic that begins s bits into a byte. */
static uint8_t third_byte[256], fourth_byte[256];

/* ---------------------------------------------------------------------------------------------
 * Bits
 * ------------------------------------------------------------------------------------------- */

static uint64_t read_bits(const uint8_t *bytes, uint64_t bit, uint32_t count)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < count; i++, bit++)
        value = value << 1 | (bytes[bit / 8] >> (7 - bit % 8) & 1);
    return value;
}

static void write_bits(uint8_t *bytes, uint64_t bit, uint64_t value, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++, bit++) {
        uint8_t mask = (uint8_t)(0x80 >> bit % 8);
        bytes[bit / 8] =
            (uint8_t)((bytes[bit / 8] & ~mask) | (value >> (count - 1 - i) & 1 ? mask : 0));
    }
}

/* bytes[0, count) move `shift` bits to the front; bytes[count] is read. */
static void shift_left(uint8_t *bytes, size_t count, uint32_t shift)
{
    for (size_t i = 0; shift > 0 && i < count; i++)
        bytes[i] = (uint8_t)(bytes[i] << shift | bytes[i + 1] >> (8 - shift));
}

static void mark_magic(uint64_t magic)
{
    for (int shift = 0; shift < 8; shift++) {
        /* Whatever is before and behind the magic, its third and fourth byte are all of it. */
        uint64_t placed = magic << (8 - shift);
        third_byte[placed >> 32 & 0xff] |= (uint8_t)(1 << shift);
        fourth_byte[placed >> 24 & 0xff] |= (uint8_t)(1 << shift);
    }
}

static bool magic_at(const uint8_t *bytes, uint64_t bit, uint64_t *magic)
{
    uint64_t word = 0;
    for (int i = 0; i < 7; i++)
        word = word << 8 | bytes[bit / 8 + (uint64_t)i];
    *magic = word >> (8 - bit % 8) & MAGIC_MASK;
    return *magic == BLOCK_MAGIC || *magic == END_MAGIC;
}

/* The first magic that begins at from or behind it and lies within bytes[0, count), or UINT64_MAX.
 */
static uint64_t find_magic(const uint8_t *bytes, size_t count, uint64_t from)
{
    uint64_t magic;
    for (size_t i = from / 8; i + 7 <= count; i++) {
        uint8_t shifts = third_byte[bytes[i + 2]] & fourth_byte[bytes[i + 3]];
        for (uint64_t shift = 0; shifts != 0 && shift < 8; shift++)
            if ((shifts >> shift & 1) && i * 8 + shift >= from &&
                magic_at(bytes, i * 8 + shift, &magic))
                return i * 8 + shift;
    }
    return UINT64_MAX;
}

/* ---------------------------------------------------------------------------------------------
 * Cutting the file into segments
 * ------------------------------------------------------------------------------------------- */

static uint64_t file_position(const struct bzip2 *bzip2, uint64_t bit)
{
    return bzip2->window_position + bit / 8;
}

/* More of the file into the window; bytes before the cursor give way. */
static int window_more(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    size_t gone = bzip2->cursor / 8;
    if (gone > 0 && bzip2->window_bytes + UNPACK_INPUT_BYTES > WINDOW_BYTES) {
        memmove(bzip2->window, bzip2->window + gone, bzip2->window_bytes - gone);
        bzip2->window_bytes -= gone;
        bzip2->window_position += gone;
        bzip2->cursor -= 8 * (uint64_t)gone;
    }
    int code = input->start == input->end ? unpack_input_fill(input, err) : 0;
    size_t taken = MIN(input->end - input->start, WINDOW_BYTES - bzip2->window_bytes);
    memcpy(bzip2->window + bzip2->window_bytes, input->data + input->start, taken);
    input->start += taken;
    bzip2->window_bytes += taken;
    bzip2->input_end = code == 0 && taken == 0;
    return code;
}

/* Makes sure of so many bits at the cursor; *there: whether the file has them. */
static int window_need(struct bzip2 *bzip2, struct unpack_input *input, uint64_t bits, bool *there,
                       struct err *err)
{
    int code = 0;
    while (code == 0 && !bzip2->input_end && 8 * bzip2->window_bytes < bzip2->cursor + bits)
        code = window_more(bzip2, input, err);
    *there = 8 * bzip2->window_bytes >= bzip2->cursor + bits;
    return code;
}

/* The end of the segment that begins at the cursor: the next magic, or the end of the file. */
static int find_end(struct bzip2 *bzip2, struct unpack_input *input, uint64_t *length, bool *at_end,
                    struct err *err)
{
    uint64_t looked = MAGIC_BITS + CRC_BITS; /* bits behind the cursor */
    for (;;) {
        uint64_t found = find_magic(bzip2->window, bzip2->window_bytes, bzip2->cursor + looked);
        *at_end = found == UINT64_MAX && bzip2->input_end;
        if (found != UINT64_MAX || *at_end) {
            uint64_t end = *at_end ? 8 * bzip2->window_bytes : found;
            *length = end - MIN(end, bzip2->cursor);
            return 0;
        }
        uint64_t here = 8 * bzip2->window_bytes - MIN(bzip2->cursor, 8 * bzip2->window_bytes);
        looked = MAX(looked, here - MIN(here, (uint64_t)64));
        if (here / 8 > SEGMENT_BYTES_MAX)
            return unpack_damaged(input, file_position(bzip2, bzip2->cursor),
                                  "no bzip2 block is as long as what begins here", err);
        int code = window_more(bzip2, input, err);
        if (code != 0)
            return code;
    }
}

static void segment_reserve(struct segment *segment, uint64_t bits)
{
    size_t need = HEADER_BYTES + bits / 8 + 2 + TRAILER_BYTES;
    if (need <= segment->capacity)
        return;
    segment->bits = mem_realloc(segment->bits, need, 1);
    segment->capacity = need;
}

static void take_segment(struct bzip2 *bzip2, uint64_t length, bool at_end)
{
    ASSERT(bzip2->filled < bzip2->segment_count);
    struct segment *segment = &bzip2->segments[bzip2->filled++];
    segment_reserve(segment, length + 8);
    size_t first = bzip2->cursor / 8, bytes = div_up(bzip2->cursor + length, 8) - first;
    memcpy(segment->bits + HEADER_BYTES, bzip2->window + first, bytes);
    segment->bits[HEADER_BYTES + bytes] = 0;
    segment->bit_count = length;
    segment->position = file_position(bzip2, bzip2->cursor);
    segment->shift = bzip2->cursor % 8;
    segment->begins_stream = bzip2->first_block;
    segment->ends_stream = false;
    segment->at_end = at_end;
    segment->state = SEGMENT_RAW;
    segment->out_bytes = segment->out_used = 0;
    bzip2->first_block = false;
    bzip2->cursor += length;
}

/* "BZh1" to "BZh9" and a magic behind it. */
static bool header_at(const uint8_t *bytes)
{
    uint64_t magic = read_bits(bytes, 32, MAGIC_BITS);
    return memcmp(bytes, "BZh", 3) == 0 && bytes[3] >= '1' && bytes[3] <= '9' &&
           (magic == BLOCK_MAGIC || magic == END_MAGIC);
}

/* A stream begins at the cursor, or nothing more is to be read. */
static int scan_header(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    bool there;
    int code = window_need(bzip2, input, 32 + MAGIC_BITS, &there, err);
    if (code != 0)
        return code;
    bzip2->in_stream = there && header_at(bzip2->window + bzip2->cursor / 8);
    bzip2->scan_end = !bzip2->in_stream;
    bzip2->first_block = true;
    bzip2->cursor += bzip2->in_stream ? 32 : 0;
    return 0;
}

/* The end of a stream is at the cursor. */
static int scan_stream_end(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    bool there;
    int code = window_need(bzip2, input, MAGIC_BITS + CRC_BITS, &there, err);
    if (code == 0 && !there)
        code = unpack_damaged(input, file_position(bzip2, bzip2->cursor), UNPACK_TOO_SHORT, err);
    if (code != 0)
        return code;
    uint32_t crc = (uint32_t)read_bits(bzip2->window, bzip2->cursor + MAGIC_BITS, CRC_BITS);
    if (bzip2->first_block) {
        if (crc != 0)
            return unpack_damaged(input, file_position(bzip2, bzip2->cursor),
                                  "the checksum of a bzip2 stream is wrong", err);
    } else {
        struct segment *last = &bzip2->segments[bzip2->filled - 1];
        ASSERT(bzip2->filled > 0);
        last->ends_stream = true;
        last->stream_crc = crc;
    }
    bzip2->cursor = round_up(bzip2->cursor + MAGIC_BITS + CRC_BITS, 8);
    bzip2->in_stream = false;
    return 0;
}

/* The segment that begins at the cursor. */
static int scan_block(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    uint64_t length = 0;
    bool at_end = false;
    int code = find_end(bzip2, input, &length, &at_end, err);
    if (code != 0)
        return code;
    take_segment(bzip2, length, at_end);
    bzip2->scan_end = at_end;
    return 0;
}

/* One segment more and the end of its stream, if that comes next; or scan_end. */
static int scan(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    uint32_t before = bzip2->filled;
    int code = 0;
    while (code == 0 && !bzip2->scan_end) {
        bool there;
        if (!bzip2->in_stream) {
            if (bzip2->filled > before)
                return 0;
            code = scan_header(bzip2, input, err);
            continue;
        }
        code = window_need(bzip2, input, MAGIC_BITS, &there, err);
        if (code == 0 && !there)
            code =
                unpack_damaged(input, file_position(bzip2, bzip2->cursor), UNPACK_TOO_SHORT, err);
        if (code != 0)
            return code;
        if (read_bits(bzip2->window, bzip2->cursor, MAGIC_BITS) == END_MAGIC)
            code = scan_stream_end(bzip2, input, err);
        else if (bzip2->filled > before)
            return 0;
        else
            code = scan_block(bzip2, input, err);
    }
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Decompressing
 * ------------------------------------------------------------------------------------------- */

static void *allocate(void *opaque, int count, int size)
{
    (void)opaque;
    return mem_alloc((uint64_t)count, (uint64_t)size);
}

static void release(void *opaque, void *pointer)
{
    (void)opaque;
    mem_free(pointer);
}

/* Makes a whole file of the segment. Returns its bytes. */
static size_t dress(struct segment *segment)
{
    uint8_t *bits = segment->bits + HEADER_BYTES;
    shift_left(bits, segment->bit_count / 8 + 1, segment->shift);
    segment->shift = 0;
    memcpy(segment->bits, "BZh9", HEADER_BYTES);
    uint64_t end = segment->bit_count, crc = read_bits(bits, MAGIC_BITS, CRC_BITS);
    write_bits(bits, end, END_MAGIC, MAGIC_BITS);
    write_bits(bits, end + MAGIC_BITS, crc, CRC_BITS); /* of one block, the stream's is its own */
    write_bits(bits, end + MAGIC_BITS + CRC_BITS, 0, 8);
    return HEADER_BYTES + div_up(end + MAGIC_BITS + CRC_BITS, 8);
}

static void segment_close(struct segment *segment)
{
    if (segment->state == SEGMENT_MORE)
        BZ2_bzDecompressEnd(segment->stream);
    segment->state = SEGMENT_DONE;
}

/* Goes on with an open stream until the buffer is full. */
static void segment_go_on(struct segment *segment)
{
    bz_stream *stream = segment->stream;
    stream->next_out = (char *)segment->out;
    stream->avail_out = OUT_BYTES;
    int result = BZ2_bzDecompress(stream);
    segment->out_bytes = OUT_BYTES - stream->avail_out;
    segment->out_used = 0;
    bool full = result == BZ_OK && stream->avail_out == 0;
    if (full)
        return;
    segment_close(segment);
    /* All of the segment must have been the block: more behind it is a magic by chance. */
    if (result != BZ_STREAM_END || stream->avail_in != 0)
        segment->state = SEGMENT_BROKEN;
}

static void segment_unpack(struct segment *segment)
{
    if (segment->out == NULL) {
        segment->out = mem_alloc(OUT_BYTES, 1);
        segment->stream = mem_alloc(1, sizeof(*segment->stream));
    }
    size_t bytes = 0;
    segment->out_bytes = segment->out_used = 0;
    segment->state = SEGMENT_BROKEN;
    if (segment->bit_count >= MAGIC_BITS + CRC_BITS)
        bytes = dress(segment);
    *segment->stream = (bz_stream){.bzalloc = allocate, .bzfree = release};
    if (bytes == 0 || BZ2_bzDecompressInit(segment->stream, 0, 0) != BZ_OK)
        return;
    segment->stream->next_in = (char *)segment->bits;
    segment->stream->avail_in = (unsigned)bytes;
    segment->state = SEGMENT_MORE;
    segment_go_on(segment);
}

static void unpack_task(void *context, uint32_t task, uint32_t worker)
{
    struct bzip2 *bzip2 = context;
    (void)worker;
    if (bzip2->segments[task].state == SEGMENT_RAW)
        segment_unpack(&bzip2->segments[task]);
}

/* ---------------------------------------------------------------------------------------------
 * Giving out
 * ------------------------------------------------------------------------------------------- */

static void swap_segments(struct segment *a, struct segment *b)
{
    struct segment kept = *a;
    *a = *b;
    *b = kept;
}

/* Segments from the next one on move to the front, and new ones behind them are decompressed. */
static int next_wave(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    uint32_t kept = bzip2->filled - bzip2->next;
    for (uint32_t i = 0; i < kept && bzip2->next > 0; i++)
        swap_segments(&bzip2->segments[i], &bzip2->segments[bzip2->next + i]);
    bzip2->next = 0;
    bzip2->filled = kept;
    while (bzip2->filled < bzip2->segment_count && !bzip2->scan_end && bzip2->scan_code == 0)
        bzip2->scan_code = scan(bzip2, input, &bzip2->scan_err);
    if (bzip2->pool != NULL && bzip2->filled > 0)
        pool_run(bzip2->pool, unpack_task, bzip2, bzip2->filled);
    for (uint32_t i = 0; bzip2->pool == NULL && i < bzip2->filled; i++)
        unpack_task(bzip2, i, 0);
    if (bzip2->filled == kept && bzip2->scan_code != 0)
        *err = bzip2->scan_err;
    return bzip2->filled == kept ? bzip2->scan_code : 0;
}

/* Invariant 2: the segment's bits go in front of those of the one behind it. */
static bool join(struct bzip2 *bzip2)
{
    struct segment *first = &bzip2->segments[bzip2->next], *second = first + 1;
    uint64_t bits = first->bit_count + second->bit_count;
    if (first->ends_stream || bits > 8 * (uint64_t)SEGMENT_BYTES_MAX)
        return false;
    segment_close(second);
    segment_reserve(first, bits);
    uint8_t *to = first->bits + HEADER_BYTES;
    const uint8_t *from = second->bits + HEADER_BYTES;
    ASSERT(first->shift == 0 && second->shift == 0);
    for (uint64_t at = 0; at < second->bit_count; at += 8) {
        uint32_t count = (uint32_t)MIN(second->bit_count - at, (uint64_t)8);
        write_bits(to, first->bit_count + at, from[at / 8] >> (8 - count), count);
    }
    first->bit_count = bits;
    first->ends_stream = second->ends_stream;
    first->stream_crc = second->stream_crc;
    first->at_end = second->at_end;
    segment_unpack(first);
    /* The joined one takes the second's place. */
    swap_segments(first, second);
    bzip2->next++;
    return true;
}

static int broken(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    const struct segment *segment = &bzip2->segments[bzip2->next];
    if (segment->at_end)
        return unpack_damaged(input, bzip2->window_position + bzip2->window_bytes, UNPACK_TOO_SHORT,
                              err);
    return unpack_damaged(input, segment->position, "a bzip2 block is not what its checksum says",
                          err);
}

/* The next segment has given all that it had. */
static int segment_over(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    struct segment *segment = &bzip2->segments[bzip2->next];
    uint32_t crc = (uint32_t)read_bits(segment->bits + HEADER_BYTES, MAGIC_BITS, CRC_BITS);
    uint32_t before = segment->begins_stream ? 0 : bzip2->stream_crc;
    bzip2->stream_crc = (before << 1 | before >> 31) ^ crc;
    bzip2->next++;
    if (segment->ends_stream && segment->stream_crc != bzip2->stream_crc)
        return unpack_damaged(input, segment->position, "the checksum of a bzip2 stream is wrong",
                              err);
    if (segment->at_end) /* the block is whole, and the end of its stream is missing */
        return unpack_damaged(input, bzip2->window_position + bzip2->window_bytes, UNPACK_TOO_SHORT,
                              err);
    return 0;
}

/* A segment that is no block by itself, and of which nothing was given out. */
static int mend(struct bzip2 *bzip2, struct unpack_input *input, struct err *err)
{
    if (bzip2->next + 1 == bzip2->filled && !bzip2->scan_end && bzip2->scan_code == 0) {
        int code = next_wave(bzip2, input, err);
        if (code != 0)
            return code;
    }
    if (bzip2->next + 1 < bzip2->filled && join(bzip2))
        return 0;
    return broken(bzip2, input, err);
}

static ssize_t read_bzip2(void *state, struct unpack_input *input, uint8_t *out, size_t bytes,
                          struct err *err)
{
    struct bzip2 *bzip2 = state;
    for (;;) {
        struct segment *segment = &bzip2->segments[bzip2->next];
        int code = 0;
        if (bzip2->next == bzip2->filled) {
            if (bzip2->scan_end && bzip2->scan_code == 0)
                return 0;
            code = next_wave(bzip2, input, err);
        } else if (segment->state == SEGMENT_BROKEN) {
            code = mend(bzip2, input, err);
        } else if (segment->out_used < segment->out_bytes) {
            size_t taken = MIN(bytes, segment->out_bytes - segment->out_used);
            memcpy(out, segment->out + segment->out_used, taken);
            segment->out_used += taken;
            return (ssize_t)taken;
        } else if (segment->state == SEGMENT_MORE) {
            segment_go_on(segment);
            /* Part of it is out: no join can help. */
            if (segment->state == SEGMENT_BROKEN)
                code = broken(bzip2, input, err);
        } else {
            code = segment_over(bzip2, input, err);
        }
        if (code != 0)
            return code;
    }
}

/* ---------------------------------------------------------------------------------------------
 * The codec
 * ------------------------------------------------------------------------------------------- */

static bool recognise(const uint8_t *head, size_t bytes)
{
    return bytes >= HEADER_BYTES + MAGIC_BITS / 8 && header_at(head);
}

static void *create(const struct unpack_settings *settings)
{
    struct bzip2 *bzip2 = mem_alloc(1, sizeof(*bzip2));
    bzip2->pool = settings->pool;
    /* Two at least: a segment may have to be joined with the next. */
    bzip2->segment_count =
        SEGMENTS_PER_THREAD * (settings->pool == NULL ? 1 : pool_thread_count(settings->pool));
    bzip2->segments = mem_alloc(bzip2->segment_count, sizeof(*bzip2->segments));
    bzip2->window = mem_alloc(WINDOW_BYTES, 1);
    mark_magic(BLOCK_MAGIC);
    mark_magic(END_MAGIC);
    return bzip2;
}

static void begin(void *state)
{
    struct bzip2 *bzip2 = state;
    for (uint32_t i = 0; i < bzip2->segment_count; i++)
        segment_close(&bzip2->segments[i]);
    bzip2->filled = bzip2->next = 0;
    bzip2->window_bytes = bzip2->window_position = bzip2->cursor = 0;
    bzip2->in_stream = bzip2->input_end = bzip2->scan_end = false;
    bzip2->scan_code = 0;
}

static void destroy(void *state)
{
    struct bzip2 *bzip2 = state;
    for (uint32_t i = 0; i < bzip2->segment_count; i++) {
        segment_close(&bzip2->segments[i]);
        mem_free(bzip2->segments[i].bits);
        mem_free(bzip2->segments[i].out);
        mem_free(bzip2->segments[i].stream);
    }
    mem_free(bzip2->segments);
    mem_free(bzip2->window);
    mem_free(bzip2);
}

const struct unpack_codec unpack_bzip2 = {"bzip2", recognise, create, destroy, begin, read_bzip2};
