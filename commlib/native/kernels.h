/* What moves do to memory: copy, and combine of several sources, into one or several destinations. */
#ifndef COMMLIB_KERNELS_H
#define COMMLIB_KERNELS_H

#include <stddef.h>

/* destinations[0..to) = combine of sources[0..from), element by element, from left to right. A destination may be a
 * source; other overlaps are not allowed. `bytes` is a multiple of the element. */
typedef void (*Combine)(char *const *destinations, int to, const char *const *sources, int from, size_t bytes);

/* The kernel of an element type and a combine, by the names of DTYPES and Combine in Python; NULL: there is none. */
Combine find_combine(const char *dtype, const char *combine);

/* A copy past the caches, where the machine has such stores. */
typedef void (*Stream)(char *to, const char *from, size_t bytes);
Stream find_stream(void);

void copy_all(char *const *destinations, int to, const char *source, size_t bytes);

/* Choose the instructions: "avx512", "avx2" or "generic", or NULL for the best there is; 0 if this machine lacks it. */
int use_instructions(const char *name);
const char *instructions(void);

#endif
