/*
 * Before step 0: does every collective between these ranks give what it must? Each rank gives small
 * whole numbers that all know, so every result is known to the last bit, on any number of ranks and
 * in any order of adding. It costs milliseconds and finds a wrong library, network or memory before
 * a run is spoiled. Called once by who opens a run of many ranks.
 */
#ifndef DEEPWELL_TRAIN_COMM_SELF_TEST_H_
#define DEEPWELL_TRAIN_COMM_SELF_TEST_H_

#include "train/comm.h"

/* All ranks call it. STATUS_DEVICE naming the collective, the place and both numbers, on a rank
 * that got a wrong one; let ranks_agree() tell the others. */
enum status comm_self_test(struct comm *comm);

#endif
