/* A stand-in for the CUDA driver, libcuda.so.1, on a machine without a GPU.
 *
 * Its device memory is the host's, so that copies are real and can be looked at; a kernel is not run, but every launch is
 * written down, as are allocations, copies and waits. Memory that is freed is filled with another value and never given
 * out again: a launch or a copy that takes an address outside of what is allocated is written down as "stray".
 * numba-cuda and cuda-core find all that they ask for. The numbers that mean something here are those of cuda.h:
 * attributes of devices, functions and pointers, and error codes.
 *
 *   cc -shared -fPIC -o FOLDER/libcuda.so.1 standin.c -ldl       and FOLDER first in LD_LIBRARY_PATH
 *
 * NUMCONV_STANDIN_VERSION is the version of CUDA that it says it supports (13000), NUMCONV_STANDIN_GPUS how many GPUs it
 * has (1); with NUMCONV_STANDIN_ERROR it does not start and says this number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void *Handle;
typedef uint64_t Address;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

/* what happened ------------------------------------------------------------------------------------------------- */

typedef struct {
  char what[16]; /* "launch", "alloc", "free", "copy", "wait", "stray", and of an event "record" and "follow" */
  char name[112];
  uint64_t blocks, threads, stream, bytes;
} Event;

enum { MOST = 1 << 14 };
static Event events[MOST];
static int happened = 0, strays = 0;

static void note(const char *what, const char *name, uint64_t blocks, uint64_t threads, Handle stream, uint64_t bytes) {
  int at = __sync_fetch_and_add(&happened, 1);
  if (at >= MOST) return;
  Event *event = &events[at];
  snprintf(event->what, sizeof event->what, "%s", what);
  snprintf(event->name, sizeof event->name, "%s", name);
  event->blocks = blocks, event->threads = threads, event->stream = (uint64_t)stream, event->bytes = bytes;
}

int standin_happened(void) { return happened < MOST ? happened : MOST; }
const Event *standin_event(int at) { return &events[at]; }
int standin_strays(void) { return strays; } /* these are not forgotten */
void standin_forget(void) { happened = 0; }

/* one device ---------------------------------------------------------------------------------------------------- */

static int told(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

Result cuInit(unsigned flags) { return told("NUMCONV_STANDIN_ERROR", OK); }
Result cuDriverGetVersion(int *version) { *version = told("NUMCONV_STANDIN_VERSION", 13000); return OK; }
Result cuDeviceGetCount(int *count) { *count = told("NUMCONV_STANDIN_GPUS", 1); return OK; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
Result cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "stand-in"); return OK; }
Result cuDeviceGetUuid(void *uuid, int device) { memset(uuid, 1, 16); return OK; }
Result cuDeviceTotalMem(size_t *bytes, int device) { *bytes = (size_t)64 << 30; return OK; }

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 1: case 2: *value = 1024; break;       /* threads of a block, along x */
    case 5: *value = 2147483647; break;         /* blocks along x */
    case 8: *value = 49152; break;              /* bytes of shared memory of a block */
    case 10: *value = 32; break;                /* threads of a warp */
    case 16: *value = 132; break;               /* multiprocessors */
    case 75: *value = 9; break;                 /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 232448; break;            /* bytes of shared memory by asking */
    default: *value = 1;
  }
  return OK;
}

/* contexts: a stack for each thread ----------------------------------------------------------------------------- */

static char primary[64];
static __thread Handle stack[256];
static __thread int depth = 0;

Result cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = primary; return OK; }
Result cuDevicePrimaryCtxRelease(int device) { return OK; }
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0, *active = 1; return OK; }
Result cuCtxGetCurrent(Handle *context) { *context = depth ? stack[depth - 1] : NULL; return OK; }
Result cuCtxPushCurrent(Handle context) { stack[depth++] = context; return OK; }
Result cuCtxPopCurrent(Handle *context) {
  if (!depth) return INVALID_CONTEXT;
  Handle top = stack[--depth];
  if (context) *context = top;
  return OK;
}
Result cuCtxSetCurrent(Handle context) {
  if (!context) depth = 0;
  else stack[depth ? depth - 1 : depth++] = context;
  return OK;
}
Result cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : INVALID_CONTEXT; }
Result cuCtxGetId(Handle context, uint64_t *id) { *id = 1; return OK; }
Result cuCtxGetStreamPriorityRange(int *least, int *most) { *least = 0, *most = -5; return OK; }
Result cuCtxSynchronize(void) { note("wait", "context", 0, 0, NULL, 0); return OK; }

/* memory -------------------------------------------------------------------------------------------------------- */

Result cuMemGetInfo(size_t *available, size_t *total) { *available = (size_t)48 << 30, *total = (size_t)64 << 30; return OK; }

typedef struct {
  Address begin, end;
  int live;
} Stretch;

enum { MOST_STRETCHES = 1 << 18, UNFILLED = 0x7f, FREED = 0xdd };
static Stretch stretches[MOST_STRETCHES];
static int taken = 0, arrays_seen = 0;
static pthread_mutex_t taking = PTHREAD_MUTEX_INITIALIZER;

/* Whether bytes lie in memory that is allocated; otherwise it is written down. */
static int inside(const char *name, Address begin, uint64_t bytes, Handle stream) {
  if (!bytes) return 1;
  pthread_mutex_lock(&taking);
  int found = 0;
  for (int i = taken - 1; i >= 0 && !found; i--)
    found = stretches[i].live && stretches[i].begin <= begin && begin + bytes <= stretches[i].end;
  pthread_mutex_unlock(&taking);
  if (!found) strays++, note("stray", name, 0, 0, stream, bytes);
  return found;
}

/* Memory that nobody has filled, 0 where there is none; for stand-ins of other libraries, too, which free it so. */
Address standin_take(size_t bytes) {
  void *memory = NULL;
  if (bytes > ((size_t)48 << 30) || posix_memalign(&memory, 512, bytes ? bytes : 1)) return 0;
  if (bytes < 1 << 20) memset(memory, UNFILLED, bytes);
  pthread_mutex_lock(&taking);
  if (taken == MOST_STRETCHES) abort();
  stretches[taken++] = (Stretch){(Address)memory, (Address)memory + bytes, 1};
  pthread_mutex_unlock(&taking);
  return (Address)memory;
}

/* Whether this was allocated. The memory stays, so that who still reads it reads what was never written. */
int standin_give_back(Address address) {
  int found = -1;
  pthread_mutex_lock(&taking);
  for (int i = taken - 1; i >= 0 && found < 0; i--)
    if (stretches[i].live && stretches[i].begin == address) found = i;
  if (found >= 0) {
    stretches[found].live = 0;
    memset((void *)address, FREED, stretches[found].end - address);
  }
  pthread_mutex_unlock(&taking);
  return found >= 0;
}

int standin_arrays(void) { return arrays_seen; }

Result cuMemAlloc(Address *address, size_t bytes) {
  note("alloc", "", 0, 0, NULL, bytes);
  return (*address = standin_take(bytes)) ? OK : OUT_OF_MEMORY;
}
Result cuMemFree(Address address) {
  note("free", "", 0, 0, NULL, 0);
  if (!address || standin_give_back(address)) return OK;
  strays++, note("stray", "free", 0, 0, NULL, 0);
  return INVALID_VALUE;
}
Result cuMemAllocAsync(Address *address, size_t bytes, Handle stream) { return cuMemAlloc(address, bytes); }
Result cuMemFreeAsync(Address address, Handle stream) { return cuMemFree(address); }

enum { TO_DEVICE = 1, TO_HOST = 2 };
static Result copied(int way, Address to, Address from, size_t bytes, Handle stream) {
  const char *name = way == TO_DEVICE ? "to device" : way == TO_HOST ? "to host" : "on device";
  note("copy", name, 0, 0, stream, bytes);
  if (way != TO_HOST && !inside(name, to, bytes, stream)) return INVALID_VALUE;
  if (way != TO_DEVICE && !inside(name, from, bytes, stream)) return INVALID_VALUE;
  memmove((void *)to, (void *)from, bytes);
  return OK;
}
Result cuMemcpyHtoD(Address to, const void *from, size_t n) { return copied(TO_DEVICE, to, (Address)from, n, NULL); }
Result cuMemcpyDtoH(void *to, Address from, size_t n) { return copied(TO_HOST, (Address)to, from, n, NULL); }
Result cuMemcpyDtoD(Address to, Address from, size_t n) { return copied(TO_DEVICE | TO_HOST, to, from, n, NULL); }
Result cuMemcpyHtoDAsync(Address to, const void *from, size_t n, Handle s) { return copied(TO_DEVICE, to, (Address)from, n, s); }
Result cuMemcpyDtoHAsync(void *to, Address from, size_t n, Handle s) { return copied(TO_HOST, (Address)to, from, n, s); }
Result cuPointerGetAttribute(void *value, int attribute, Address address) {
  switch (attribute) {
    case 1: *(Handle *)value = primary; break;   /* context */
    case 2: *(int *)value = 2; break;            /* it is a device's */
    case 3: *(Address *)value = address; break;
    default: *(int *)value = 0;                  /* the ordinal of the device, among others */
  }
  return OK;
}
Result cuPointerGetAttributes(unsigned n, int *attributes, void **values, Address address) {
  for (unsigned i = 0; i < n; i++) cuPointerGetAttribute(values[i], attributes[i], address);
  return OK;
}
static int pool;
Result cuDeviceGetDefaultMemPool(Handle *found, int device) { *found = &pool; return OK; }
Result cuDeviceGetMemPool(Handle *found, int device) { *found = &pool; return OK; }
Result cuMemPoolGetAttribute(Handle of, int attribute, void *value) { *(uint64_t *)value = 0; return OK; }
Result cuMemPoolSetAttribute(Handle of, int attribute, void *value) { return OK; }

/* streams and events: all is done at once ------------------------------------------------------------------------ */

Result cuStreamCreate(Handle *stream, unsigned flags) { *stream = malloc(8); return OK; }
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) { *stream = malloc(8); return OK; }
Result cuStreamDestroy(Handle stream) { return OK; }
Result cuStreamSynchronize(Handle stream) { note("wait", "stream", 0, 0, stream, 0); return OK; }
Result cuStreamGetCtx(Handle stream, Handle *context) { *context = primary; return OK; }
Result cuStreamIsCapturing(Handle stream, int *status) { *status = 0; return OK; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { note("follow", "", 0, 0, stream, 0); return OK; }
Result cuEventCreate(Handle *event, unsigned flags) { *event = malloc(8); return OK; }
Result cuEventDestroy(Handle event) { free(event); return OK; }
Result cuEventRecord(Handle event, Handle stream) { note("record", "", 0, 0, stream, 0); return OK; }
Result cuEventQuery(Handle event) { return OK; }
Result cuEventSynchronize(Handle event) { note("wait", "event", 0, 0, NULL, 0); return OK; }
Result cuEventElapsedTime(float *milliseconds, Handle begin, Handle end) { *milliseconds = 0; return OK; }

/* code: a kernel is its name and the sizes of its parameters, as its image says them ------------------------------ */

enum { MOST_PARAMETERS = 256, MOST_KERNELS = 16, PARAMETER = 0x17, WITH_SIZE = 4 };

typedef struct {
  char *name;
  int count;
  uint16_t size[MOST_PARAMETERS];
} Kernel;

typedef struct {
  int count;
  Kernel kernels[MOST_KERNELS];
} Library;

/* What a section .nv.info.NAME says: a format, an attribute, and for some formats a size and so many bytes. */
static void read_parameters(Kernel *kernel, const uint8_t *at, const uint8_t *end) {
  while (at + 4 <= end) {
    uint16_t bytes = at[0] == WITH_SIZE ? *(const uint16_t *)(at + 2) : 0;
    if (at[0] == WITH_SIZE && at[1] == PARAMETER) {
      uint16_t ordinal = *(const uint16_t *)(at + 8);
      if (ordinal < MOST_PARAMETERS) {
        kernel->size[ordinal] = *(const uint32_t *)(at + 12) >> 18;
        if (kernel->count <= ordinal) kernel->count = ordinal + 1;
      }
    }
    at += 4 + bytes;
  }
}

Result cuLibraryLoadData(Handle *library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
  const uint8_t *bytes = image;
  const Elf64_Ehdr *head = image;
  if (memcmp(image, ELFMAG, SELFMAG)) return 200; /* no image that a device could run */
  Library *read = calloc(1, sizeof *read);
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(bytes + head->e_shoff);
  const char *names = (const char *)bytes + sections[head->e_shstrndx].sh_offset;
  for (int i = 0; i < head->e_shnum && read->count < MOST_KERNELS; i++) {
    const char *name = names + sections[i].sh_name, *begin = ".nv.info.";
    if (strncmp(name, begin, strlen(begin))) continue;
    Kernel *kernel = &read->kernels[read->count++];
    kernel->name = strdup(name + strlen(begin));
    const uint8_t *at = bytes + sections[i].sh_offset;
    read_parameters(kernel, at, at + sections[i].sh_size);
  }
  *library = read;
  return OK;
}
Result cuLibraryUnload(Handle library) { return OK; }
Result cuLibraryGetKernel(Handle *kernel, Handle library, const char *name) {
  Library *of = library;
  for (int i = 0; i < of->count; i++)
    if (!strcmp(of->kernels[i].name, name)) return *kernel = &of->kernels[i], OK;
  return NOT_FOUND;
}
Result cuLibraryGetGlobal(Address *address, size_t *bytes, Handle library, const char *name) { return NOT_FOUND; }
Result cuLibraryGetModule(Handle *module, Handle library) { *module = library; return OK; }
Result cuKernelGetFunction(Handle *function, Handle kernel) { *function = kernel; return OK; }
Result cuKernelGetLibrary(Handle *library, Handle kernel) { *library = kernel; return OK; }
Result cuKernelGetName(const char **name, Handle kernel) { *name = ((Kernel *)kernel)->name; return OK; }
Result cuFuncGetAttribute(int *value, int attribute, Handle f) { *value = attribute ? 0 : 1024; return OK; }
Result cuKernelGetAttribute(int *value, int attribute, Handle k, int device) { return cuFuncGetAttribute(value, attribute, k); }
Result cuKernelSetAttribute(int attribute, int value, Handle kernel, int device) { return OK; }
Result cuModuleGetLoadingMode(int *mode) { *mode = 2; return OK; }

/* An array of numba's in the arguments of a kernel is 0, 0, items, bytes of an item, address, shape, strides. Small
 * numbers in the place of an address are other arguments. */
static void look_at(const Kernel *kernel, void **arguments, Handle stream) {
  for (int i = 0; i + 6 < kernel->count; i++) {
    uint64_t v[8] = {0};
    int wide = 1;
    for (int j = 0; j < 8 && i + j < kernel->count; j++) {
      if (kernel->size[i + j] == 8) v[j] = *(uint64_t *)arguments[i + j];
      else if (j < 7) wide = 0;
    }
    int item = v[3] == 1 || v[3] == 2 || v[3] == 4 || v[3] == 8 || v[3] == 16;
    if (!wide || v[0] || v[1] || !item || (v[4] && v[4] < 4096) || (v[5] != v[2] && v[5] * v[6] != v[2])) continue;
    arrays_seen++;
    inside(kernel->name, v[4], v[2] * v[3], stream);
    i += 6;
  }
}

typedef struct {
  unsigned grid[3], block[3], shared;
  Handle stream;
} Configuration;

Result cuLaunchKernelEx(const Configuration *c, Handle kernel, void **arguments, void **extra) {
  const Kernel *of = kernel;
  unsigned threads = c->block[0] * c->block[1] * c->block[2];
  if (!depth) return INVALID_CONTEXT;
  if (!c->grid[0] || c->grid[0] > 2147483647u || !threads || threads > 1024) return INVALID_VALUE;
  note("launch", of->name, c->grid[0], c->block[0], c->stream, 0);
  look_at(of, arguments, c->stream);
  return OK;
}
Result cuLaunchKernel(
    Handle kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    Handle stream, void **arguments, void **extra) {
  Configuration c = {{gx, gy, gz}, {bx, by, bz}, shared, stream};
  return cuLaunchKernelEx(&c, kernel, arguments, extra);
}

/* errors, and how others find all of this ------------------------------------------------------------------------ */

Result cuGetErrorName(Result error, const char **name) { *name = "CUDA_ERROR_OF_THE_STAND_IN"; return OK; }
Result cuGetErrorString(Result error, const char **text) { *text = "the stand-in refuses this"; return OK; }

Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
  static void *self = NULL;
  if (!self) {
    Dl_info here;
    dladdr((void *)cuInit, &here);
    self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }
  *function = strcmp(name, "cuGetProcAddress") ? dlsym(self, name) : (void *)cuGetProcAddress_v2;
  if (status) *status = *function ? 0 : 1;
  return *function ? OK : NOT_FOUND;
}
Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
