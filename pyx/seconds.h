/* A clock, and the seconds that the stages of a kernel take. */
#ifndef ZNNI_SECONDS_H
#define ZNNI_SECONDS_H
#include <time.h>

static inline double zn_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* `spent` holds the seconds of each stage of one thread; where it is NULL nothing is timed. */
static inline double zn_stage_begin(const double *spent) { return spent ? zn_seconds() : 0.0; }

/* Adds what has passed since `since` to a stage; returns the time. */
static inline double zn_stage_end(double *spent, int stage, double since) {
    if (!spent) return 0.0;
    const double now = zn_seconds();
    spent[stage] += now - since;
    return now;
}
#endif
