// Package watch is the object set of folders of YAML: it reads them, keeps watch
// with inotify, and reports what changed (see package kube for the rules that
// files follow).
//
// A [Folder] owns everything in one goroutine, that of Run. Each step takes all
// events that are there, reads just the files that they name, and reports once;
// there is no timer between a change and its report, and none to look for changes.
// A file counts when its writer closes it or moves it into place, so that no half
// of one is ever seen.
//
// What fails: a wrong file is reported as a kube.Problem and the last good version
// of its objects stays; when the kernel had to drop events the folders are read
// again; only the loss of inotify itself ends Run.
package watch
