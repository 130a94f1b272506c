/*
 * prep_state: what lets a prep that was killed at any moment go on where it was, and end with the
 * files of an undisturbed one, byte for byte.
 *
 * DIR/unfinished exists while prep is not done:
 *   state.json      the arguments, what the inputs looked like, and the last mark: written whole or
 *                   not at all, after everything that it speaks of has reached the drive
 *   text            what was costly to read, as text (io/spool.h)
 *   tokenizer.json  where it was learned
 * beside the token files under their ".tmp" names. What lies behind the mark is cut off and done
 * again. A mark is set every --save-every, between two batches; and when a signal asks for the end.
 *
 * Invariants:
 * 1. A folder with state.json has no dataset.json, unless prep came to replace that one and has not
 *    begun to, or died between sealing the new one and its last step.
 * 2. A state of other arguments, other inputs or another version is refused, never overwritten,
 *    unless --restart says so.
 */
#ifndef SPILLWAY_TOOLS_PREP_STATE_H
#define SPILLWAY_TOOLS_PREP_STATE_H

#include "tools/prep.h"
#include <stdbool.h>

/* Makes the folder, or reads the state that is there into prep (phase, mark, split, input_bytes).
 * The out folder is locked, the corpus open, and a tokenizer that was given is loaded. */
int prep_state_open(struct prep *prep, struct err *err);
/* Releases; where prep failed (ok is false) tells how to go on, or removes what is of no use. */
void prep_state_close(struct prep *prep, bool ok);

/* The name of the spool's file; NULL where standard input is among the inputs, which cannot be gone
 * on with. May be called before prep_state_open. */
const char *prep_state_spool(const struct prep *prep);
/* Loads the tokenizer that was learned. A given one must be the one of the mark. */
int prep_state_tokenizer(struct prep *prep, struct err *err);

/* Between two batches: sets a mark if it is time. An error where a signal asked for the end. */
int prep_pause(struct prep *prep, struct err *err);
/* Sets a mark of prep->phase now. */
int prep_state_save(struct prep *prep, struct err *err);
/* The dataset is whole, or of no use: nothing is to be gone on with. */
void prep_state_discard(struct prep *prep);

#endif
