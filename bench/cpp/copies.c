/* Counts the bytes that a process copies, for `acceltcp bench host`: loaded in front of the C library (LD_PRELOAD).
 *
 * Copies below LEAST bytes are not counted: headers, pointers and the interpreter's own tables. Copies by the kernel are not
 * seen. The loops below must not become calls of what they stand for: -fno-builtin -fno-tree-loop-distribute-patterns.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

#define LEAST 512

unsigned long long acceltcp_copied_bytes;

typedef void *copy_function(void *, const void *, size_t);
static copy_function *real_memcpy, *real_memmove;

static void *slow_move(void *to, const void *from, size_t count)
{
    char *t = to;
    const char *f = from;
    if (t <= f)
        for (size_t i = 0; i < count; i++)
            t[i] = f[i];
    else
        for (size_t i = count; i-- > 0;)
            t[i] = f[i];
    return to;
}

/* The loader itself copies before it can be asked for anything. */
__attribute__((constructor)) static void find(void)
{
    copy_function *move = (copy_function *)dlsym(RTLD_NEXT, "memmove");
    copy_function *copy = (copy_function *)dlsym(RTLD_NEXT, "memcpy");
    real_memmove = move;
    real_memcpy = copy;
}

void *memcpy(void *to, const void *from, size_t count)
{
    if (count >= LEAST)
        acceltcp_copied_bytes += count;
    return real_memcpy ? real_memcpy(to, from, count) : slow_move(to, from, count);
}

void *memmove(void *to, const void *from, size_t count)
{
    if (count >= LEAST)
        acceltcp_copied_bytes += count;
    return real_memmove ? real_memmove(to, from, count) : slow_move(to, from, count);
}

void *mempcpy(void *to, const void *from, size_t count)
{
    return (char *)memcpy(to, from, count) + count;
}

void *__memcpy_chk(void *to, const void *from, size_t count, size_t room)
{
    (void)room;
    return memcpy(to, from, count);
}

void *__memmove_chk(void *to, const void *from, size_t count, size_t room)
{
    (void)room;
    return memmove(to, from, count);
}
