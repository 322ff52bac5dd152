module pilotlight.test/interop/tunnel

go 1.26.0

require (
	github.com/bufbuild/protocompile v0.14.1
	github.com/jhump/grpctunnel v0.3.0
	google.golang.org/grpc v1.78.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/fullstorydev/grpchan v1.1.1 // indirect
	golang.org/x/net v0.47.0 // indirect
	golang.org/x/sync v0.18.0 // indirect
	golang.org/x/sys v0.38.0 // indirect
	golang.org/x/text v0.31.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261019180522-ce908d29299b // indirect
)
