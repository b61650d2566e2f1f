// Division by what is known before the launch: a multiplication and a shift.
//
// | primitive             | who calls | contract                                                              |
// |-----------------------|-----------|-----------------------------------------------------------------------|
// | Divisor(d)            | host      | d < 2^63; one below 1 counts as 1                                     |
// | d.quotient(int64_t n) | any       | n / d, n >= 0: about 12 instructions                                  |
// | d.quotient(int n)     | any       | n / d, n >= 0: about 4                                                |
// | d.remainder(n)        | any       | n % d, of either                                                      |
//
// With 2^(k - 1) < d <= 2^k and m = ceil(2^(63 + k) / d), n * m / 2^(63 + k) exceeds n / d by less than 1 / d: the floor is
// the same. So with 31 bits.
#pragma once
#include "device.cuh"

class Divisor
{
  public:
    Divisor() = default;
    explicit Divisor(int64_t d) : d_(d < 1 ? 1 : d), shift_(0)
    {
        while ((uint64_t)d_ > (uint64_t)1 << shift_)
            shift_++;
        using Product = unsigned __int128;
        magic_ = (uint64_t)((((Product)1 << (63 + shift_)) + (Product)d_ - 1) / (Product)d_);
        small_magic_ = shift_ < 32 ? (uint32_t)((((Product)1 << (31 + shift_)) + (Product)d_ - 1) / (Product)d_) : 0;
        small_shift_ = shift_ < 32 ? shift_ : 0; // 0 / 2^0 where no int reaches d
    }

    WF_ON_DEVICE int64_t quotient(int64_t n) const
    {
        return (int64_t)((uint64_t)((unsigned __int128)((uint64_t)n << 1) * magic_ >> 64) >> shift_);
    }
    WF_ON_DEVICE int quotient(int n) const
    {
        return (int)((uint32_t)((uint64_t)((uint32_t)n << 1) * small_magic_ >> 32) >> small_shift_);
    }
    template <class I> WF_ON_DEVICE I remainder(I n) const { return n - quotient(n) * (I)d_; }

  private:
    int64_t  d_;
    uint64_t magic_;
    uint32_t small_magic_;
    int      shift_, small_shift_;
};
