module lab/cni

go 1.25.0

require (
	github.com/containernetworking/plugins v1.9.1
)
