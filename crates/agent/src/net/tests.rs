mod bed;
mod guarding;
mod moving;
mod perimeter;
