/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * What an unconnected UDP socket has of each service that it sends to: the endpoint, which it
 * keeps while that lives, and under which name the endpoint's replies are shown.
 *
 * A socket's records hang together from the oldest to the newest, and go when it is released.
 * Two threads may send on one socket: records are added, changed under their lock, and removed
 * only by whoever releases the socket or adds one too many.
 */
#pragma once

#include "include/address.h"
#include "include/maps.h"
#include "include/service.h"

static const __u8 no_datagram[sizeof(struct datagram)];

static __always_inline void datagram_key(struct datagram_key *key, __u64 cookie, const union addr *addr,
					 __be16 port)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->at.addr = *addr;
	key->at.port = port;
}

/* kept_load - the endpoint that the socket has of a service; true if its replies are shown as it. */
static __always_inline bool kept_load(struct datagram *d, struct kept *out)
{
	bool shown;

	bpf_spin_lock(&d->lock);
	*out = d->kept;
	shown = d->shown;
	bpf_spin_unlock(&d->lock);
	return shown;
}

static __always_inline void kept_store(struct datagram *d, const struct kept *kept, bool shown)
{
	bpf_spin_lock(&d->lock);
	d->kept = *kept;
	d->shown = shown;
	bpf_spin_unlock(&d->lock);
}

/* name_yield - the service that an endpoint's replies stood for has to say so again. */
static __noinline int name_yield(__u64 cookie, const struct datagram_name *name)
{
	struct datagram_key key;
	struct datagram *d;

	if (!name)
		return 0;
	datagram_key(&key, cookie, &name->original.addr, name->original.port);
	d = bpf_map_lookup_elem(&datagrams, &key);
	if (d) {
		bpf_spin_lock(&d->lock);
		d->shown = 0;
		bpf_spin_unlock(&d->lock);
	}
	return 0;
}

/*
 * name_give - have an endpoint's replies stand for a service; false: there is no room.
 * They can stand for one only: the last one used.
 */
static __noinline bool name_give(__u64 cookie, const struct kept *kept,
				 const struct frontend *dialled)
{
	struct datagram_name *old, name = {};

	datagram_key(&name.self, cookie, &kept->addr, kept->port);
	name.original.addr = dialled->addr;
	name.original.port = dialled->port;
	old = bpf_map_lookup_elem(&datagram_names, &name.self);
	if (old && (old->original.port != dialled->port ||
		    !addr_equal(&old->original.addr, &dialled->addr)))
		name_yield(cookie, old);
	return bpf_map_update_elem(&datagram_names, &name.self, &name, BPF_ANY) == 0;
}

/* name_take - the replies of an address stand for nothing but itself from now on. */
static __noinline int name_take(__u64 cookie, const union addr *addr, __be16 port)
{
	struct datagram_name *old;
	struct datagram_key key;

	datagram_key(&key, cookie, addr, port);
	old = bpf_map_lookup_elem(&datagram_names, &key);
	if (!old)
		return 0;
	name_yield(cookie, old);
	bpf_map_delete_elem(&datagram_names, &key);
	return 0;
}

/* name_load - what a socket's owner dialled to reach an address; false: that very address. */
static __always_inline bool name_load(__u64 cookie, union addr *seen, __be16 *port)
{
	struct datagram_name *name;
	struct datagram_key key;
	union addr original;
	__be16 original_port;

	datagram_key(&key, cookie, seen, *port);
	name = bpf_map_lookup_elem(&datagram_names, &key);
	if (!name)
		return false;
	addr_load_fresh(&original, &name->original.addr);
	original_port = load_fresh(name->original.port);
	/* Another thread may have taken the name, and its memory may be another's already. */
	if (load_fresh(name->self.cookie) != cookie || load_fresh(name->self.at.port) != *port ||
	    !addr_equal(&name->self.at.addr, seen))
		return false;
	*seen = original;
	*port = original_port;
	return true;
}

/* datagram_drop - remove a record with its name; where says which one was added after it. */
static __always_inline bool datagram_drop(struct datagram_key *where)
{
	struct datagram_key name;
	struct datagram *d;
	struct place next;
	struct kept kept;

	d = bpf_map_lookup_elem(&datagrams, where);
	if (!d)
		return false;
	next = d->next;
	if (kept_load(d, &kept)) {
		datagram_key(&name, where->cookie, &kept.addr, kept.port);
		bpf_map_delete_elem(&datagram_names, &name);
	}
	bpf_map_delete_elem(&datagrams, where);
	where->at = next;
	return true;
}

/* datagram_add - a record for what the socket has not sent to before; NULL: there is no room. */
static __noinline struct datagram *datagram_add(const struct datagram_key *key,
						struct bpf_sock *sk)
{
	struct datagram_list *list;
	struct datagram_key other;
	struct datagram *d;
	bool many;

	list = bpf_sk_storage_get(&datagram_lists, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!list)
		return 0;
	if (bpf_map_update_elem(&datagrams, key, no_datagram, BPF_NOEXIST))
		/* No room, or another thread was faster. */
		return bpf_map_lookup_elem(&datagrams, key);
	__builtin_memset(&other, 0, sizeof(other));
	other.cookie = key->cookie;
	bpf_spin_lock(&list->lock);
	other.at = list->newest;
	list->newest = key->at;
	if (!list->count)
		list->oldest = key->at;
	list->count++;
	many = list->count > DATAGRAM_SERVICES;
	bpf_spin_unlock(&list->lock);
	if (other.at.port) {
		d = bpf_map_lookup_elem(&datagrams, &other);
		if (d)
			d->next = key->at;
	}
	if (many) {
		bpf_spin_lock(&list->lock);
		other.at = list->oldest;
		bpf_spin_unlock(&list->lock);
		if (datagram_drop(&other)) {
			bpf_spin_lock(&list->lock);
			list->oldest = other.at;
			list->count--;
			bpf_spin_unlock(&list->lock);
		}
	}
	return bpf_map_lookup_elem(&datagrams, key);
}

static long datagram_release(__u32 i __attribute__((unused)), struct datagram_key *where)
{
	return !where->at.port || !datagram_drop(where);
}

/* datagrams_release - the socket is gone. */
static __always_inline void datagrams_release(struct bpf_sock *ctx)
{
	struct datagram_list *list = bpf_sk_storage_get(&datagram_lists, ctx, 0, 0);
	struct datagram_key where = {};

	if (!list)
		return;
	where.cookie = bpf_get_socket_cookie(ctx);
	where.at = list->oldest;
	bpf_loop(DATAGRAM_SERVICES + 1, datagram_release, &where, 0);
}
