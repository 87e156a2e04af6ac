/* Functions newer than glibc 2.28 that g++'s headers and libstdc++.a ask for, by older ones. Linked
   into the module by tools/release.py, hidden. */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

int getentropy(void* buffer, size_t length);

#pragma GCC visibility push(hidden)

/* "There may be other threads": counts of shared pointers stay atomic. */
char __libc_single_threaded = 0;

unsigned arc4random(void) {
  unsigned word;
  if (getentropy(&word, sizeof word) != 0) abort();
  return word;
}

/* Waits by the wall clock, as libstdc++ did before there was this function. */
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const struct timespec* until) {
  struct timespec now, wall;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &wall);
  wall.tv_sec += until->tv_sec - now.tv_sec;
  wall.tv_nsec += until->tv_nsec - now.tv_nsec;
  if (wall.tv_nsec < 0 || wall.tv_nsec >= 1000000000) {
    const long carry = wall.tv_nsec < 0 ? -1 : 1;
    wall.tv_sec += carry;
    wall.tv_nsec -= carry * 1000000000;
  }
  return pthread_cond_timedwait(condition, mutex, &wall);
}

#pragma GCC visibility pop
