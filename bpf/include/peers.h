/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What is noted of connected sockets: maps of both objects, as maps.h says of all. */
#pragma once

#include "types.h"

/*
 * A connected UDP socket, or a TCP socket that is steered -> what its owner dialled. Written by
 * connect; goes with the socket. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

/*
 * Cookie of a TCP socket that was translated -> what its owner dialled, for getpeername. Written by
 * connect, deleted by sock_release; when full, getpeername shows the endpoint. A storage of
 * the socket would cost three times as much to make, and as much again to free. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct peer);
} translated SEC(".maps");
