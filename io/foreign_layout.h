/*
 * foreign_layout: the numbers in other trainers' token files, for io/foreign.c, which reads them,
 * and io/foreign_write.c.
 */
#ifndef SPILLWAY_IO_FOREIGN_LAYOUT_H
#define SPILLWAY_IO_FOREIGN_LAYOUT_H

/* llm.c: int32 in the header; magic, version, tokens. */
#define FOREIGN_LLMC_HEADER     256
#define FOREIGN_LLMC_MAGIC_16   20240520
#define FOREIGN_LLMC_VERSION_16 1
#define FOREIGN_LLMC_MAGIC_32   20240801
#define FOREIGN_LLMC_VERSION_32 7

/* Megatron: magic, uint64 version, a byte for the type, uint64 sequences, uint64 entries of
 * documents; then int32 lengths, int64 places in bytes, int64 documents. */
#define FOREIGN_MEGATRON_MAGIC       "MMIDIDX\0\0"
#define FOREIGN_MEGATRON_MAGIC_BYTES 9
#define FOREIGN_MEGATRON_HEADER      34
#define FOREIGN_MEGATRON_U16         8
#define FOREIGN_MEGATRON_I32         4

#endif
