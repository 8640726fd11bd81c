/* Numbers as machine-readable files need them: they read back to the same bits. Used by the
 * configuration and the metrics file. */
#ifndef DEEPWELL_TRAIN_ENCODE_H_
#define DEEPWELL_TRAIN_ENCODE_H_

/* The shortest of 15, 16 or 17 digits that strtod reads back to the same value ("nan", "inf" and
 * "-inf" too). Writes into `text` and returns it. */
enum { REAL_TEXT_BYTES = 32 };
const char *real_text(char text[REAL_TEXT_BYTES], double value);

#endif
