/* Words that processes share: loads with acquire, stores with release, the fence for sleeping, the futex. */
#ifndef COMMLIB_WAIT_H
#define COMMLIB_WAIT_H

#include <stdint.h>
#include <time.h>

#ifdef __linux__
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static inline uint64_t load_acquire(const void *word) {
    return __atomic_load_n((const uint64_t *)word, __ATOMIC_ACQUIRE);
}
static inline uint32_t load_acquire32(const void *word) {
    return __atomic_load_n((const uint32_t *)word, __ATOMIC_ACQUIRE);
}
static inline uint32_t load_relaxed32(const void *word) {
    return __atomic_load_n((const uint32_t *)word, __ATOMIC_RELAXED);
}
static inline void store_relaxed32(void *word, uint32_t value) {
    __atomic_store_n((uint32_t *)word, value, __ATOMIC_RELAXED);
}
static inline void store_release(void *word, uint64_t value) {
    __atomic_store_n((uint64_t *)word, value, __ATOMIC_RELEASE);
}
/* A store that is also a full fence: no later load is taken before it. */
static inline void store_fenced(void *word, uint64_t value) {
#if defined(__x86_64__)
    (void)__atomic_exchange_n((uint64_t *)word, value, __ATOMIC_SEQ_CST); /* a locked instruction is a fence */
#else
    __atomic_store_n((uint64_t *)word, value, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
static inline void fence(void) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline uint32_t add32(void *word, int32_t amount) {
    return __atomic_fetch_add((uint32_t *)word, (uint32_t)amount, __ATOMIC_SEQ_CST);
}

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Sleep while the word is `seen`, at most `ns` nanoseconds; may return early. */
static inline void futex_wait(void *word, uint32_t seen, int64_t ns) {
    struct timespec limit = {ns / 1000000000, ns % 1000000000};
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, 0, 0);
#else
    if (ns > 100000) limit = (struct timespec){0, 100000};
    if (load_acquire32(word) == seen) nanosleep(&limit, 0);
#endif
}

static inline void futex_wake(void *word) {
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, 0, 0, 0);
#else
    (void)word;
#endif
}

#endif
