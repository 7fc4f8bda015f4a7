package api

import (
	"math"
	"time"
)

// Response times are kept as counts in logarithmic buckets, as DDSketch does (Masson, Rim, Lee, VLDB 2019,
// arXiv 1908.10693): counts of the same bucket add up in SQL over keys and hours, and every quantile read from them
// lies within latencyError of the exact one.
const (
	latencyError = 0.04
	latencyUnit  = 10 * time.Microsecond // all that is faster falls into bucket 0
)

var latencyGamma = math.Log((1 + latencyError) / (1 - latencyError))

// LatencyBucket is the bucket that d is counted in: 0 for up to 10 microseconds, about 245 for an hour.
func LatencyBucket(d time.Duration) int {
	if d <= latencyUnit {
		return 0
	}
	return int(math.Ceil(math.Log(float64(d)/float64(latencyUnit)) / latencyGamma))
}

// BucketLatency is the value that stands for a bucket: at most 4 % from everything counted in it.
func BucketLatency(bucket int) time.Duration {
	if bucket <= 0 {
		return latencyUnit
	}
	return time.Duration(float64(latencyUnit) * math.Exp(float64(bucket)*latencyGamma) * (1 - latencyError))
}

// LatencyQuantile reads a quantile (0..1) from counts by bucket, which must come in ascending order of bucket.
// It is 0 when nothing was counted.
func LatencyQuantile(buckets []LatencyCount, q float64) time.Duration {
	var total int64
	for _, b := range buckets {
		total += b.Count
	}
	if total == 0 {
		return 0
	}
	rank := int64(math.Ceil(q * float64(total)))
	var seen int64
	for _, b := range buckets {
		seen += b.Count
		if seen >= rank {
			return BucketLatency(b.Bucket)
		}
	}
	return BucketLatency(buckets[len(buckets)-1].Bucket)
}

// LatencyCount is how many response times fell into one bucket.
type LatencyCount struct {
	Bucket int
	Count  int64
}
