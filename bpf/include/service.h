/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Finding the service that a destination means, and an endpoint of it. */
#pragma once

#include "address.h"
#include "event.h"

/*
 * A reader can meet an element that user space just replaced. It then looks again; that it
 * meets one each time needs a change of the very service between any two looks.
 */
#define SERVICE_LOOKS 4

/* An endpoint as it was chosen. */
struct choice {
	union addr addr;
	__be16 port;
	__u32 service;
	__u32 generation;
	__u32 flags;
};

enum lookup {
	LOOKUP_NONE = 0,  /* no such service */
	LOOKUP_FOUND = 1, /* choice is set */
	LOOKUP_PROXY = 2, /* goes to the node proxy: only service and flags of choice are set */
	LOOKUP_EMPTY = 3, /* a service without endpoints, or none that could be read */
};

/*
 * load_fresh - read what another CPU may be writing.
 * The order matters: the copies of the key are read after the fields that they vouch for.
 */
#define load_fresh(x) (*(volatile typeof(x) *)&(x))

static __always_inline void addr_load_fresh(union addr *to, const union addr *from)
{
	to->word[0] = load_fresh(from->word[0]);
	to->word[1] = load_fresh(from->word[1]);
	to->word[2] = load_fresh(from->word[2]);
	to->word[3] = load_fresh(from->word[3]);
}

static __always_inline bool frontend_equal(const struct frontend *a, const struct frontend *b)
{
	return addr_equal(&a->addr, &b->addr) && a->port == b->port && a->protocol == b->protocol;
}

/*
 * service_load - copy the service of a frontend.
 * LOOKUP_EMPTY: it could not be read, and what it says is not known.
 */
static __always_inline enum lookup service_load(const struct frontend *key, struct service *out)
{
	struct service *s;

	for (int look = 0; look < SERVICE_LOOKS; look++) {
		s = bpf_map_lookup_elem(&services, key);
		if (!s)
			return LOOKUP_NONE;
		out->id = load_fresh(s->id);
		out->generation = load_fresh(s->generation);
		out->count = load_fresh(s->count);
		out->flags = load_fresh(s->flags);
		out->affinity_seconds = load_fresh(s->affinity_seconds);
		addr_load_fresh(&out->self.addr, &s->self.addr);
		out->self.port = load_fresh(s->self.port);
		out->self.protocol = load_fresh(s->self.protocol);
		if (frontend_equal(&out->self, key))
			return LOOKUP_FOUND;
	}
	return LOOKUP_EMPTY;
}

static __always_inline enum membership membership(__u32 service, const union addr *addr,
						    __be16 port)
{
	struct member_key key = { .addr = *addr, .port = port, .service = service };
	__u32 *is = bpf_map_lookup_elem(&members, &key);

	return is ? *is : MEMBER_NONE;
}

/* affinity_load - the endpoint that a client keeps; false if it keeps none. */
static __always_inline bool affinity_load(const struct affinity_key *key, __u32 seconds,
					  struct choice *out)
{
	struct affinity *a = bpf_map_lookup_elem(&affinities, key);
	__u64 now;

	if (!a)
		return false;
	now = bpf_ktime_get_ns();
	if (now - load_fresh(a->used) > (__u64)seconds * 1000000000ULL)
		return false;
	addr_load_fresh(&out->addr, &a->addr);
	out->port = load_fresh(a->port);
	/* This also catches an element that was used again for another client. */
	if (membership(key->service, &out->addr, out->port) != MEMBER_USED)
		return false;
	a->used = now;
	return true;
}

static __always_inline void affinity_store(const struct affinity_key *key, const struct choice *c)
{
	struct affinity a = { .used = bpf_ktime_get_ns(), .addr = c->addr, .port = c->port };

	/* Without room the client gets a fresh endpoint next time. */
	bpf_map_update_elem(&affinities, key, &a, BPF_ANY);
}

/* scatter - a number that looks random, made of a socket's cookie and a service (murmur3's end). */
static __always_inline __u32 scatter(__u64 cookie, __u32 service)
{
	__u64 h = cookie ^ ((__u64)service << 32);

	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return h;
}

/*
 * service_choose - find the service of a destination and choose an endpoint.
 * @kept: an endpoint that this socket has of the service, kept while it is one; or NULL.
 */
static __always_inline enum lookup service_choose(const struct frontend *key, __u64 netns_cookie,
						  __u64 socket_cookie,
						  const struct kept *kept,
						  struct choice *out)
{
	struct affinity_key affinity = { .netns_cookie = netns_cookie };
	struct endpoint_key slot = {};
	struct service s = {};
	enum lookup found;
	struct endpoint *e;
	__u32 random;

	for (int look = 0; look < SERVICE_LOOKS; look++) {
		found = service_load(key, &s);
		if (found != LOOKUP_FOUND)
			return found;
		out->service = s.id;
		out->flags = s.flags;
		out->generation = s.generation;
		if (s.flags & SERVICE_DNS)
			return LOOKUP_PROXY;
		if ((s.flags & SERVICE_STEERED) && key->protocol == IPPROTO_TCP)
			return LOOKUP_PROXY;
		affinity.service = s.id;
		if ((s.flags & SERVICE_AFFINITY) &&
		    affinity_load(&affinity, s.affinity_seconds, out))
			return LOOKUP_FOUND;
		if (kept && kept->port && kept->service == s.id &&
		    (kept->generation == s.generation ||
		     membership(s.id, &kept->addr, kept->port))) {
			out->addr = kept->addr;
			out->port = kept->port;
			return LOOKUP_FOUND;
		}
		if (!s.count)
			return LOOKUP_EMPTY;
		if (key->protocol == IPPROTO_TCP)
			random = bpf_get_prandom_u32();
		else
			random = scatter(socket_cookie, s.id);
		slot.service = s.id;
		slot.generation = s.generation;
		slot.slot = ((__u64)random * s.count) >> 32;
		e = bpf_map_lookup_elem(&endpoints, &slot);
		if (!e)
			continue;
		addr_load_fresh(&out->addr, &e->addr);
		out->port = load_fresh(e->port);
		if (load_fresh(e->service) != s.id || load_fresh(e->generation) != s.generation)
			continue;
		if (s.flags & SERVICE_AFFINITY)
			affinity_store(&affinity, out);
		return LOOKUP_FOUND;
	}
	return LOOKUP_EMPTY;
}
