/* A stand-in for libcuda.so.1 on machines without a GPU: device memory is the host's, "kernels" are functions below,
   streams run at once, graphs replay what was recorded, and a status can be planted for any function. */
#define _GNU_SOURCE /* memmem */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <time.h>

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };
typedef uint64_t Address;
typedef void (*Body)(void **);

static const char *planted_name = "";
static int planted_status, planted_after, lost, launches, gpus = 1, hanging;
static uint64_t allocated, pending;

void fake_plant(const char *name, int status, int after) {
    planted_name = strdup(name);
    planted_status = status;
    planted_after = after;
}
void fake_gpus(int count) { gpus = count; }
int fake_launches(void) { return launches; }
static int overlapping;
uint64_t fake_allocated(void) { return allocated; }
void fake_reset(void) {
    overlapping = 0;
    fake_plant("", 0, 0);
    lost = launches = 0;
    pending = hanging = 0;
    gpus = 1;
}

static int entered(const char *name) {
    if (!strcmp(name, planted_name) && planted_after-- == 0) {
        planted_name = "";
        return planted_status;
    }
    return lost;
}
#define ENTER(name)                      \
    do {                                 \
        int status = entered(name);      \
        if (status) return status;       \
    } while (0)

/* ---- kernels ---- */
static void scale(void **p) { /* float* x, float factor, int n */
    float *x = *(float **)p[0], factor = *(float *)p[1];
    for (int i = 0, n = *(int *)p[2]; i < n; i++) x[i] *= factor;
}
static void append(void **p) { /* float* x, float digit: x = 10 x + digit, so that the order of launches shows */
    float *x = *(float **)p[0];
    *x = 10 * *x + *(float *)p[1];
}
static float bonus = 1.0f; /* a __constant__ of every module */
static void add_bonus(void **p) { **(float **)p[0] += bonus; } /* float* x */
static void overrun(void **p) { /* float* x, int index */
    (*(float **)p[0])[*(int *)p[1]] = 1.0f;
}
static void wild(void **p) { (void)p; pending = ILLEGAL_ADDRESS; }

/* What device_log.cuh does, for one PROBE("value", value) a thread: the layouts are those of harness/device_log/layout.py. */
struct Slot { uint32_t site, check, block[2], thread, meta, bits[2]; };
struct Control { uint64_t next, lost; uint32_t launch, printed, sites[1024], fired[1024]; };
struct Site { uint32_t hash, line; char text[504]; };
static struct Log {
    struct Control *control;
    struct Slot *slots;
    struct Site *sites;
    uint64_t capacity;
    uint32_t epoch, blind, block[3][2], thread[3][2], warp[2];
} device_log;
static unsigned block_size = 1;
static int logs, prints; /* what the module that was loaded last does */

static int within(const uint32_t range[2], uint32_t value) { return value - range[0] <= range[1]; }
static int selected(unsigned block, unsigned thread) {
    const uint32_t b[3] = {block, 0, 0}, t[3] = {thread, 0, 0};
    for (int axis = 0; axis < 3; axis++)
        if (!within(device_log.block[axis], b[axis]) || !within(device_log.thread[axis], t[axis])) return 0;
    return device_log.control && within(device_log.warp, thread / 32);
}
static uint32_t check_of(const struct Slot *slot) {
    uint64_t words[4], factors[4] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0xd6e8feb86659fd93, 0xa0761d6478bd642f}, sum = 0;
    memcpy(words, slot, sizeof words);
    words[0] = slot->site | (uint64_t)device_log.epoch << 32;
    for (int i = 0; i < 4; i++) sum += words[i] * factors[i];
    return sum >> 32;
}
static void record(unsigned block, unsigned thread, float value) {
    static const char said[] = "k.cu\0value\0value";
    struct Control *control = device_log.control;
    uint64_t at = control->next++;
    if (at >= device_log.capacity) { control->lost++; return; }
    struct Site *site = device_log.sites + 7;
    site->hash = control->sites[7] = 7;
    site->line = 6;
    memcpy(site->text, said, sizeof said);
    struct Slot slot = {.site = 7, .block = {block, 1u << 31}, .thread = thread | 11u << 26, .meta = control->launch};
    memcpy(slot.bits, &value, sizeof value);
    slot.check = check_of(&slot);
    device_log.slots[at] = slot;
}
static void k(void **p) { /* float* out, int n: out[i] = i / 2; -n of them and a crash, or with out[0] = 1 a hang */
    float *out = *(float **)p[0];
    int n = *(int *)p[1], hangs = out[0] == 1.0f, dies = n < 0;
    for (int i = 0; i < (dies ? -n : n); i++) {
        const float value = i * 0.5f;
        if (logs && selected(i / block_size, i % block_size)) record(i / block_size, i % block_size, value);
        if (prints) printf("%f\n", value);
        if (prints && device_log.control) device_log.control->printed++;
        if (!dies) out[i] = value;
    }
    fflush(stdout);
    if (dies && !hangs) pending = ILLEGAL_ADDRESS;
    hanging = dies && hangs;
}
static void probe_next_launch(void **p) { ++**(uint32_t **)p[0]; }

static struct Function {
    const char *name;
    Body body;
    int count, shared_static, shared_allowed;
    size_t sizes[4];
} functions[] = {
    {"scale", scale, 3, 0, 49152, {8, 4, 4}},
    {"append", append, 2, 0, 49152, {8, 4}},
    {"add_bonus", add_bonus, 1, 0, 49152, {8}},
    {"overrun", overrun, 2, 1024, 49152, {8, 4}},
    {"wild", wild, 0, 0, 49152, {0}},
    {"k", k, 2, 0, 49152, {8, 4}},
    {"probe_next_launch", probe_next_launch, 1, 0, 49152, {8}},
};

/* ---- graphs: launches with their parameters copied ---- */
struct Launch { struct Function *function; char values[4][8]; };
struct Graph { int count; struct Launch launches[8192]; };
struct Stream { struct Graph *recording; };

static void execute(struct Launch *launch) {
    void *p[4];
    for (int i = 0; i < 4; i++) p[i] = launch->values[i];
    launches++;
    launch->function->body(p);
}

/* ---- the driver's functions ---- */
int cuInit(unsigned flags) { (void)flags; return gpus ? entered("cuInit") : 100; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = gpus; return 0; }
int cuDeviceGet(int *d, int ordinal) { *d = ordinal; return 0; }
int cuDeviceGetName(char *room, int size, int d) { (void)d; strncpy(room, "Stand-in", size); return 0; }
int cuDeviceGetPCIBusId(char *room, int size, int d) { (void)d; strncpy(room, "0000:01:00.0", size); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) {
    (void)d;
    *v = a == 75 ? 9 : a == 76 ? 0 : a == 38 ? 1 << 20 : a == 97 ? 232448 : a == 16 ? 132 : 1000;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = 1 << 30; return 0; }
static int context;
static void *current;
int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; ENTER("cuDevicePrimaryCtxRetain"); *c = &context; return 0; }
int cuCtxGetCurrent(void **c) { *c = current; return 0; }
int cuCtxSetCurrent(void *c) { current = c; return 0; }
int cuCtxSynchronize(void) {
    ENTER("cuCtxSynchronize");
    if (pending) lost = (int)pending;
    return lost;
}
int cuMemAlloc_v2(Address *a, size_t n) {
    ENTER("cuMemAlloc_v2");
    if (n > 1 << 30) return OUT_OF_MEMORY;
    size_t *block = aligned_alloc(256, (n + 256 + 255) / 256 * 256);
    *block = n;
    allocated += n;
    *a = (Address)block + 256;
    return 0;
}
int cuMemFree_v2(Address a) {
    while (hanging) pause();  // it waits for all that runs
    size_t *block = (size_t *)(a - 256); 
    allocated -= *block;
    free(block);
    return lost;
}
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = *t = 1 << 30; return 0; }
int cuMemcpyHtoD_v2(Address to, const void *from, size_t n) { ENTER("cuMemcpyHtoD_v2"); memcpy((void *)to, from, n); return 0; }
int cuMemcpyDtoH_v2(void *to, Address from, size_t n) { ENTER("cuMemcpyDtoH_v2"); memcpy(to, (void *)from, n); return 0; }
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void *s) { (void)s; memcpy((void *)to, (void *)from, n); return 0; }
int cuMemsetD8_v2(Address a, unsigned char b, size_t n) { memset((void *)a, b, n); return 0; }
int cuMemsetD8Async(Address a, unsigned char b, size_t n, void *s) { (void)s; memset((void *)a, b, n); return 0; }
static int holds(const char *image, const char *word) {
    uint64_t table;
    uint16_t sizes[2];
    memcpy(&table, image + 40, 8);
    memcpy(sizes, image + 58, 4);
    return memmem(image, table + sizes[0] * sizes[1], word, strlen(word)) != 0;
}
int cuModuleLoadData(void **m, const char *image) {
    ENTER("cuModuleLoadData");
    *m = functions;
    if (memcmp(image, "\177ELF", 4) || holds(image, "probe_next_launch")) return 0;
    logs = holds(image, "probe_device_log");
    prints = holds(image, "vprintf");
    return 0;
}
int cuModuleGetGlobal_v2(Address *a, size_t *n, void *m, const char *name) {
    (void)m;
    if (!strcmp(name, "bonus")) {
        *a = (Address)&bonus;
        *n = sizeof bonus;
        return 0;
    }
    if (!logs || strcmp(name, "probe_device_log")) return NOT_FOUND;
    *a = (Address)&device_log;
    *n = sizeof device_log;
    return 0;
}
int probe_attach(const void *log) { memcpy(&device_log, log, sizeof device_log); return 0; }
int cuCtxSetLimit(int limit, size_t value) { (void)limit, (void)value; ENTER("cuCtxSetLimit"); return 0; }
int cuModuleUnload(void *m) { (void)m; return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
    (void)m;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(functions[i].name, name)) { *f = functions + i; return 0; }
    return NOT_FOUND;
}
int cuFuncGetAttribute(int *v, int a, struct Function *f) { (void)a; *v = f->shared_static; return 0; }
int cuFuncSetAttribute(struct Function *f, int a, int v) { if (a == 8) f->shared_allowed = v; return 0; }
int cuFuncGetParamInfo(struct Function *f, size_t i, size_t *offset, size_t *size) {
    if (i >= (size_t)f->count) return INVALID_VALUE;
    *offset = 8 * i;
    *size = f->sizes[i];
    return 0;
}
int cuLaunchKernel(struct Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, struct Stream *s, void **p, void **extra) {
    (void)extra;
    ENTER("cuLaunchKernel");
    if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024) return INVALID_VALUE;
    if ((int)shared + f->shared_static > f->shared_allowed) return INVALID_VALUE;
    struct Launch launch = {.function = f};
    block_size = bx;
    for (int i = 0; i < f->count; i++) memcpy(launch.values[i], p[i], f->sizes[i]);
    if (s && s->recording) s->recording->launches[s->recording->count++] = launch;
    else execute(&launch);
    return 0;
}
// A launch that may overlap the one before it: CUlaunchConfig and CUlaunchAttribute as the driver has them.
struct Attribute { int id, padding, value; unsigned char rest[60]; };
struct Config { unsigned grid[3], block[3], shared; struct Stream *stream; struct Attribute *attributes; unsigned count; };
int fake_overlapping(void) { return overlapping; }
int cuLaunchKernelEx(struct Config *c, struct Function *f, void **p, void **extra) {
    if (c->count != 1 || c->attributes->id != 6 || c->attributes->value != 1) return INVALID_VALUE;
    overlapping++;
    return cuLaunchKernel(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, p, extra);
}
int cuStreamCreate(struct Stream **s, unsigned flags) { (void)flags; *s = calloc(1, sizeof **s); return 0; }
int cuStreamDestroy_v2(struct Stream *s) { free(s); return 0; }
int cuStreamSynchronize(struct Stream *s) { (void)s; return cuCtxSynchronize(); }
int cuStreamBeginCapture_v2(struct Stream *s, int mode) { (void)mode; s->recording = calloc(1, sizeof(struct Graph)); return 0; }
int cuStreamEndCapture(struct Stream *s, struct Graph **g) { *g = s->recording; s->recording = 0; return 0; }
int cuGraphInstantiateWithFlags(struct Graph **e, struct Graph *g, uint64_t flags) {
    (void)flags;
    *e = malloc(sizeof **e);
    **e = *g;
    return 0;
}
int cuGraphUpload(struct Graph *e, struct Stream *s) { (void)e, (void)s; return 0; }
int cuGraphLaunch(struct Graph *e, struct Stream *s) {
    (void)s;
    ENTER("cuGraphLaunch");
    for (int i = 0; i < e->count; i++) execute(e->launches + i);
    return 0;
}
int cuGraphExecDestroy(struct Graph *e) { free(e); return 0; }
int cuGraphDestroy(struct Graph *g) { free(g); return 0; }
int cuEventCreate(struct timespec **e, unsigned flags) { (void)flags; *e = calloc(1, sizeof **e); return 0; }
int cuEventRecord(struct timespec *e, struct Stream *s) { (void)s; clock_gettime(CLOCK_MONOTONIC, e); return 0; }
int cuEventQuery(struct timespec *e) { (void)e; return hanging ? NOT_READY : cuCtxSynchronize(); }
int cuEventSynchronize(struct timespec *e) { (void)e; return 0; }
int cuEventElapsedTime(float *ms, struct timespec *a, struct timespec *b) {
    *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f;
    return 0;
}
int cuEventDestroy_v2(struct timespec *e) { free(e); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { (void)flags; ENTER("cuMemHostAlloc"); *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { free(p); return 0; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t n, void *s) {
    (void)s;
    ENTER("cuMemcpyHtoDAsync_v2");
    memcpy((void *)to, from, n);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, void *s) {
    (void)s;
    ENTER("cuMemcpyDtoHAsync_v2");
    memcpy(to, (void *)from, n);
    return 0;
}
int cuGraphGetNodes(struct Graph *g, struct Launch **nodes, size_t *n) {
    if (nodes)
        for (size_t i = 0; i < *n; i++) nodes[i] = g->launches + i;
    *n = g->count;
    return 0;
}
int cuGraphNodeGetType(struct Launch *node, int *type) { (void)node; *type = 0; return 0; }
int cuGraphKernelNodeGetParams_v2(struct Launch *node, struct Function **params) { *params = node->function; return 0; }
int cuFuncGetName(const char **name, struct Function *f) { *name = f->name; return 0; }
static const struct { int status; const char *name, *text; } statuses[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
};
static int describe(int status, const char **text, int name) {
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].status == status) { *text = name ? statuses[i].name : statuses[i].text; return 0; }
    *text = 0;
    return INVALID_VALUE;
}
int cuGetErrorName(int status, const char **text) { return describe(status, text, 1); }
int cuGetErrorString(int status, const char **text) { return describe(status, text, 0); }
