/* Runs a kernel's grid: blocks one after another, the threads of a block in turns.
 *
 * A thread runs until its block's next barrier, then the next one does. Threads run on fibers; one that ends without having
 * met a barrier leaves its fiber to the next thread, so that a kernel without barriers is a plain loop. The order of threads
 * turns round at random between barriers, and that of blocks between launches: a missing barrier shows. So do, by an error:
 * barriers that not all threads of a block reach, indices beyond an array, misaligned vectors, addresses that nobody owns.
 * Shared memory is NaN when a block begins.
 */
#ifndef BLOCKS_ON_CPU_H
#define BLOCKS_ON_CPU_H

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define ZN_GUARD_BYTES 512
#define ZN_GUARD 0xA7
#define ZN_MOST_THREADS 1024

/* As in compiler.py. */
struct ZnLaunch {
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    unsigned seed;
    void **arguments;
    unsigned char *stacks; /* ZN_MOST_THREADS of them */
    unsigned long long stack_bytes;
    unsigned char *shared; /* shared_bytes and a guard zone */
    char *message;
    unsigned long long message_bytes;
};

enum ZnResult { ZN_DONE = 0, ZN_FAILED = 1, ZN_BROKEN = 2 };

extern "C" {
extern unsigned char __start_zn_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_zn_shared[] __attribute__((weak, visibility("hidden")));
__attribute__((visibility("hidden"))) void zn_switch(void **from, void *to);
}

/* Saves what a call must keep on this stack, and goes on with the other one. */
#if defined(__x86_64__)
asm(R"(
.text
.hidden zn_switch
.globl zn_switch
.type zn_switch, @function
zn_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size zn_switch, .-zn_switch
.section .note.GNU-stack,"",@progbits
.text
)");
static void *zn_fresh_stack(unsigned char *stack, size_t bytes, void (*entry)()) {
    void **top = (void **)(stack + bytes - 8);
    *top = nullptr; /* no one to return to; leaves the entry aligned as after a call */
    *--top = (void *)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    return top;
}
#elif defined(__aarch64__)
asm(R"(
.text
.hidden zn_switch
.globl zn_switch
.type zn_switch, %function
zn_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size zn_switch, .-zn_switch
)");
static void *zn_fresh_stack(unsigned char *stack, size_t bytes, void (*entry)()) {
    void **top = (void **)(stack + bytes - 160);
    memset(top, 0, 160);
    top[11] = (void *)entry;
    return top;
}
#else
#error "the simulated device switches stacks on x86-64 and aarch64 only"
#endif

static ZnLaunch *zn_launch;
static void (*zn_entry)();
static void *zn_main;                       /* where the grid's loop waits */
static void *zn_fiber[ZN_MOST_THREADS];     /* where thread i waits at a barrier */
static void *zn_dead;
static unsigned zn_threads, zn_started, zn_place, zn_arrived, zn_finished, zn_random;
static bool zn_backwards;
static int zn_line, zn_result;
static sigjmp_buf zn_way_out;

static inline bool zn_coin() {
    zn_random ^= zn_random << 13, zn_random ^= zn_random >> 17, zn_random ^= zn_random << 5;
    return zn_random & 0x10000;
}

static inline unsigned zn_thread_at(unsigned place) { return zn_backwards ? zn_threads - 1 - place : place; }

static void zn_say(const char *what) {
    if (zn_launch->message[0]) return;
    snprintf(zn_launch->message, zn_launch->message_bytes, "%s (thread %u,%u,%u of block %u,%u,%u)", what, threadIdx.x,
             threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
}

/* Gives up the launch, from within a kernel. */
__attribute__((noreturn)) static void zn_fail(const char *what) {
    zn_say(what);
    zn_result = ZN_FAILED;
    zn_switch(&zn_dead, zn_main);
    __builtin_unreachable();
}

static void zn_set_thread(unsigned thread) {
    threadIdx.x = thread % blockDim.x;
    threadIdx.y = thread / blockDim.x % blockDim.y;
    threadIdx.z = thread / blockDim.x / blockDim.y;
}

/* The stack to go on with once the current thread has met a barrier, or has ended. */
static void *zn_next() {
    if (zn_started < zn_threads) {
        unsigned fiber = zn_started;
        zn_place = zn_started++;
        zn_set_thread(zn_thread_at(zn_place));
        return zn_fresh_stack(zn_launch->stacks + fiber * zn_launch->stack_bytes, zn_launch->stack_bytes, zn_entry);
    }
    if (++zn_place < zn_threads) return zn_fiber[zn_thread_at(zn_place)];
    if (zn_finished == zn_threads) return zn_main;
    char what[160];
    snprintf(what, sizeof what, "the barrier of line %d is reached by %u threads of a block, not by the other %u", zn_line,
             zn_arrived, zn_threads - zn_arrived);
    zn_say(what);
    zn_result = ZN_FAILED;
    return zn_main;
}

__attribute__((noinline)) static void zn_barrier(int line) {
    const uint3 mine = threadIdx;
    const unsigned thread = zn_thread_at(zn_place);
    if (zn_arrived++ == 0) zn_line = line;
    if (line != zn_line) {
        char what[160];
        snprintf(what, sizeof what, "threads of a block wait at different barriers, of lines %d and %d", zn_line, line);
        zn_fail(what);
    }
    if (zn_arrived == zn_threads) {
        zn_arrived = zn_place = 0;
        zn_backwards = zn_coin();
        const unsigned first = zn_thread_at(0);
        if (first != thread) zn_switch(&zn_fiber[thread], zn_fiber[first]);
    } else {
        zn_switch(&zn_fiber[thread], zn_next());
    }
    threadIdx = mine;
}

template <auto F> struct ZnKernel;
template <class... A, void (*F)(A...)> struct ZnKernel<F> {
    template <class T> struct Pointer { static constexpr bool value = false; };
    template <class T> struct Pointer<T *> { static constexpr bool value = true; };
    template <class T> static constexpr char code() {
        if constexpr (Pointer<T>::value) return 'p';
        else if constexpr (__is_class(T) || __is_enum(T) || sizeof(T) < 4) return '?';
        else if constexpr (T(0.5) != T(0)) return sizeof(T) == 4 ? 'f' : 'd';
        else return sizeof(T) == 4 ? 'i' : 'l';
    }
    static constexpr char signature[] = {code<A>()..., 0};
    template <unsigned... I> struct Indices {};
    template <unsigned N, unsigned... I> struct Count : Count<N - 1, N - 1, I...> {};
    template <unsigned... I> struct Count<0, I...> { using type = Indices<I...>; };
    template <class T> struct Plain { using type = T; };
    template <class T> struct Plain<const T> { using type = T; };

    template <unsigned... I> static inline void call(void **arguments, Indices<I...>) {
        F(*(typename Plain<A>::type *)arguments[I]...);
    }
    /* The life of a fiber. */
    static void threads() {
        for (;;) {
            call(zn_launch->arguments, typename Count<sizeof...(A)>::type{});
            ++zn_finished;
            if (zn_started == zn_threads) zn_switch(&zn_dead, zn_next());
            zn_place = zn_started++;
            zn_set_thread(zn_thread_at(zn_place));
        }
    }
};

static void zn_on_signal(int number, siginfo_t *info, void *) {
    char what[160];
    if (number == SIGFPE) snprintf(what, sizeof what, "an integer is divided by zero");
    else snprintf(what, sizeof what, "an address is used that is nobody's: %p", info->si_addr);
    zn_say(what);
    zn_result = ZN_BROKEN;
    siglongjmp(zn_way_out, 1);
}

static void zn_fill_shared() {
    memset(zn_launch->shared, 0xFF, zn_launch->shared_bytes);
    if (__start_zn_shared) memset(__start_zn_shared, 0xFF, (size_t)(__stop_zn_shared - __start_zn_shared));
}

static bool zn_shared_intact() {
    const unsigned char *guard = zn_launch->shared + zn_launch->shared_bytes;
    for (int i = 0; i < ZN_GUARD_BYTES; ++i)
        if (guard[i] != ZN_GUARD) return false;
    return true;
}

static void zn_run_blocks() {
    const unsigned long long blocks = 1ull * gridDim.x * gridDim.y * gridDim.z;
    memset(zn_launch->shared + zn_launch->shared_bytes, ZN_GUARD, ZN_GUARD_BYTES);
    const bool backwards = zn_coin();
    for (unsigned long long i = 0; i < blocks; ++i) {
        const unsigned long long block = backwards ? blocks - 1 - i : i;
        blockIdx.x = (unsigned)(block % gridDim.x);
        blockIdx.y = (unsigned)(block / gridDim.x % gridDim.y);
        blockIdx.z = (unsigned)(block / gridDim.x / gridDim.y);
        zn_fill_shared();
        zn_started = zn_arrived = zn_finished = 0;
        zn_backwards = zn_coin();
        zn_switch(&zn_main, zn_next());
        if (zn_result) return;
        if (!zn_shared_intact()) {
            zn_say("memory beyond the block's shared memory is written");
            zn_result = ZN_FAILED;
            return;
        }
    }
}

static int zn_run(ZnLaunch *launch, void (*entry)()) {
    static unsigned char signal_stack[65536];
    const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction own = {}, before[3];
    stack_t own_stack = {}, stack_before;

    zn_launch = launch;
    zn_entry = entry;
    gridDim = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
    blockDim = dim3(launch->block[0], launch->block[1], launch->block[2]);
    zn_threads = blockDim.x * blockDim.y * blockDim.z;
    zn_random = launch->seed | 1;
    zn_result = ZN_DONE;
    zn_dynamic_shared = launch->shared;

    own_stack.ss_sp = signal_stack;
    own_stack.ss_size = sizeof signal_stack;
    sigaltstack(&own_stack, &stack_before);
    own.sa_sigaction = zn_on_signal;
    own.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(numbers[i], &own, &before[i]);
    if (!sigsetjmp(zn_way_out, 1)) zn_run_blocks();
    for (int i = 0; i < 3; ++i) sigaction(numbers[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
    return zn_result;
}

/* What g++ calls where -fsanitize=bounds,alignment,shift finds something. */
struct ZnPlace {
    const char *file;
    unsigned line, column;
};

static void zn_fail_at(const ZnPlace *place, const char *what) {
    char message[400];
    const char *name = strrchr(place->file, '/');
    snprintf(message, sizeof message, "%s, line %u of %s", what, place->line, name ? name + 1 : place->file);
    zn_fail(message);
}

#define ZN_HIDDEN extern "C" __attribute__((visibility("hidden"), used))
ZN_HIDDEN void __ubsan_handle_out_of_bounds(ZnPlace *place, size_t index) {
    char what[80];
    snprintf(what, sizeof what, "index %lld is beyond an array", (long long)index);
    zn_fail_at(place, what);
}
ZN_HIDDEN void __ubsan_handle_type_mismatch_v1(ZnPlace *place, size_t) { zn_fail_at(place, "a misaligned address is used"); }
ZN_HIDDEN void __ubsan_handle_shift_out_of_bounds(ZnPlace *place, size_t, size_t) {
    zn_fail_at(place, "a shift is negative, or beyond the integer");
}

/* What a launch calls, what it must be given (a letter a parameter), and the threads that a block may have. */
#define ZN_SHOWN extern "C" __attribute__((visibility("default")))
#define ZN_KERNEL(name, bound)                                                                                         \
    ZN_SHOWN int zn_launch_##name(ZnLaunch *launch) { return zn_run(launch, ZnKernel<name>::threads); }                \
    ZN_SHOWN const char *zn_signature_##name() { return ZnKernel<name>::signature; }                                   \
    ZN_SHOWN int zn_bound_##name() { return (bound) ? (bound) : ZN_MOST_THREADS; }

#endif
