// What Arduino has in every sketch.
#pragma once

inline void delay(unsigned long) {}
