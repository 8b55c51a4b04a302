// Package sockets makes TCP sockets inside workloads' network namespaces for a
// process that may not enter them.
//
// A Maker runs in the proxy's small privileged parent: it reads requests from one
// end of a socketpair and answers with descriptors. A Pool runs in the
// unprivileged worker: it keeps a few sockets of each workload ready, so that a
// new upstream connection waits for nobody, and asks for more in batches.
//
// A Maker opens nothing but network namespaces in the one folder that it was
// given. When it goes away the worker can finish what it has and must be
// replaced: the Pool says so once, by Run's error.
package sockets
