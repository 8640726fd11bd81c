/*
 * The vocabulary of a run: how its tokens are written and read, and which one ends a text. Where it
 * comes from, in this order: data.tokenizer and data.end_of_text; the dataset.json beside the
 * training shards; the tokenizer; bytes for a model of 256 tokens. Commands call vocabulary_resolve
 * once, so that what was found is part of the configuration that a checkpoint keeps. An engine owns
 * the opened one; token_text.c and validation.c read it.
 */
#ifndef DEEPWELL_TRAIN_VOCABULARY_H_
#define DEEPWELL_TRAIN_VOCABULARY_H_

#include "data/tokenizer.h"
#include "train/config.h"

struct vocabulary {
    size_t size;                 /* model.vocabulary */
    struct tokenizer *tokenizer; /* NULL: bytes if size is BYTE_VOCABULARY, numbers otherwise */
    int32_t end_of_text;         /* -1: none is known */
};

/* Whether tokens stand for text: there is a tokenizer, or they are bytes. */
bool vocabulary_is_text(const struct vocabulary *vocabulary);

/* Fills data.tokenizer and data.end_of_text where they are left to be found. STATUS_CONFIG where
 * samples during the run would begin with an end of text that is not known, or eval.file is text
 * and nothing makes tokens of it. */
enum status vocabulary_resolve(struct config *config);

/* Prefers the tokenizer.json in a checkpoint's folder to the one that its configuration names. */
enum status vocabulary_prefer_checkpoint(struct config *config, const char *folder);

/* STATUS_CONFIG if the tokenizer has tokens that the model does not have. */
enum status vocabulary_open(struct vocabulary *vocabulary, const struct config *config);
void vocabulary_close(struct vocabulary *vocabulary);

/* data.end_of_text, or that of bytes, or -1. */
int32_t vocabulary_end_of_text(const struct config *config);

#endif
