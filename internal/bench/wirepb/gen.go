// Package wirepb is the Protocol Buffers form of a batch of events. To generate it
// anew, with protoc of Debian's protobuf-compiler and the plugin of the version in
// go.mod:
//
//	GOBIN=/tmp/bin go install google.golang.org/protobuf/cmd/protoc-gen-go
//	PATH=/tmp/bin:$PATH go generate ./wirepb
package wirepb

//go:generate protoc --go_out=. --go_opt=paths=source_relative batch.proto
