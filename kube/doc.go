// Package kube is the one set of Kubernetes objects that Sluice works from, and
// the border to where they come from.
//
// A [Source] reports the set as it changes. There is a folder of YAML (package
// kube/watch, for `sluiced node --config DIR`); informers of an API server fit
// the same interface. Objects that pass this border are immutable, defaulted and
// validated: what an API server would have done has been done.
//
// # A folder as a source
//
// `sluiced node --config DIR` reads every *.yaml, *.yml and *.json file below DIR
// (names that begin with "." or end in "~" are skipped, symbolic links are
// followed, so that a mounted ConfigMap works). A file holds any number of
// documents, "---" between them; List kinds are taken apart. Then:
//
//   - Decoding is strict: an unknown or repeated field is an error. Errors say
//     file, line, object, field and cure. They cost the document that has them and
//     nothing else; an object that was good before stays in force as it was.
//   - Unknown kinds are reported once per file and ignored.
//   - An object in two files is an error that names both; the first file, by
//     the order of directories and then of paths, wins.
//   - A file that vanishes may come back for a quarter of a second before its objects
//     go, because editors and git replace files so; an object that moved to another
//     file never goes. All other changes take effect when their file is closed or
//     moved into place.
//   - A Pod that runs stands in place of the declared one of its name, and takes the
//     labels and container ports from it that it does not say itself.
//   - Objects without a namespace are in "default".
//   - Fields get the defaults of the Kubernetes and Gateway API schemas, and Gateway API
//     objects are checked by the schemas and CEL rules of its standard channel (package
//     kube/validate): experimental fields are errors.
//   - Services without clusterIP get stable addresses of the service CIDRs.
//   - metadata.generation counts the changes of a spec since the start, unless the
//     file says it; metadata.creationTimestamp is the file's, or none: then objects
//     are as old as each other and names decide precedence.
//   - Nothing is reported before the whole folder was read once.
//
// Nothing in this package runs by itself.
package kube
