/* A machine without some libraries: whatever wants to load one of these is told that there is no such file.
 *
 *   cc -shared -fPIC -o hide.so hide.c -ldl
 *   LD_PRELOAD=./hide.so NUMCONV_HIDDEN=libnvvm:libnvrtc NUMCONV_SHOWN=FOLDER python …
 *
 * NUMCONV_HIDDEN are parts of names, NUMCONV_SHOWN is where they may be loaded from all the same.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void *dlopen(const char *name, int flags) {
  static void *(*real)(const char *, int) = NULL;
  const char *hidden = getenv("NUMCONV_HIDDEN"), *shown = getenv("NUMCONV_SHOWN");
  char words[1024], *rest = words;
  if (!real) real = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
  if (!name || !hidden || flags & RTLD_NOLOAD || (shown && *shown && !strncmp(name, shown, strlen(shown)))) return real(name, flags);
  strncpy(words, hidden, sizeof words - 1)[sizeof words - 1] = 0;
  for (char *word; (word = strsep(&rest, ":"));)
    if (*word && strstr(name, word)) return real("/hidden by hide.c", flags);
  return real(name, flags);
}
