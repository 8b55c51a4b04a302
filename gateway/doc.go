// Package gateway turns Kubernetes objects into the mesh.
package gateway
